#include "calc.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct token next_token(struct lexer *l)
{
    struct token t = { .kind = WRONG };
    while (isspace((unsigned char)*l->at))
        l->at++;
    if (!*l->at) {
        t.kind = END;
    } else if (isdigit((unsigned char)*l->at) || *l->at == '.') {
        char *end;
        t.number = strtod(l->at, &end);
        t.kind = NUMBER;
        l->at = end;
    } else if (isalpha((unsigned char)*l->at)) {
        size_t n = 0;
        while (isalnum((unsigned char)*l->at) && n < sizeof t.text - 1)
            t.text[n++] = *l->at++;
        t.kind = NAME;
    } else if (strchr("+-*/%^()", *l->at)) {
        t.kind = OPERATOR;
        t.text[0] = *l->at++;
    }
    return t;
}
