#include "calc.h"
#include <stdio.h>
#include <stdlib.h>

void *grow(void *p, size_t size)
{
    p = realloc(p, size);
    if (!p)
        abort();
    return p;
}

int complain(const char *what)
{
    fprintf(stderr, "calc: %s\n", what);
    return 1;
}
