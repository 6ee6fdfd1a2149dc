#include "calc.h"
#include <math.h>

int evaluate(const struct program *p, double *result)
{
    struct stack s = { .depth = 0 };
    for (size_t i = 0; i < p->count; i++) {
        const struct op *op = &p->ops[i];
        double a = 0, b = 0, v = op->value;
        if (op->code != PUSH && pop(&s, &b))
            return 1;
        if (op->code >= ADD && op->code <= POW && pop(&s, &a))
            return 1;
        switch (op->code) {
        case PUSH: break;
        case ADD: v = a + b; break;
        case SUB: v = a - b; break;
        case MUL: v = a * b; break;
        case DIV: v = a / b; break;
        case MOD: v = fmod(a, b); break;
        case POW: v = pow(a, b); break;
        case NEG: v = -b; break;
        case CALL: v = op->function(b); break;
        }
        if (push(&s, v))
            return 1;
    }
    return pop(&s, result);
}
