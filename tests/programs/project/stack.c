#include "calc.h"

int push(struct stack *s, double v)
{
    if (s->depth == sizeof s->values / sizeof *s->values)
        return complain("too deep");
    s->values[s->depth++] = v;
    return 0;
}

int pop(struct stack *s, double *v)
{
    if (!s->depth)
        return complain("nothing on the stack");
    *v = s->values[--s->depth];
    return 0;
}
