#include "calc.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int calculate(const char *text)
{
    struct program p = { 0 };
    double result;
    int failed = parse(text, &p) || evaluate(&p, &result);
    if (!failed)
        print_result(result);
    free(p.ops);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    char line[256];
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-") != 0)
            failed += calculate(argv[i]);
        else
            while (fgets(line, sizeof line, stdin))
                failed += calculate(line);
    }
    return failed;
}
