#include "calc.h"
#include <string.h>

struct parser { struct lexer lexer; struct token token; struct program *program; };

static void advance(struct parser *p) { p->token = next_token(&p->lexer); }

static int is(struct parser *p, char c) { return p->token.kind == OPERATOR && p->token.text[0] == c; }

static void emit(struct parser *p, struct op op)
{
    struct program *out = p->program;
    if (out->count == out->room) {
        out->room = out->room ? out->room * 2 : 8;
        out->ops = grow(out->ops, out->room * sizeof *out->ops);
    }
    out->ops[out->count++] = op;
}

static int sum(struct parser *p);

static int atom(struct parser *p)
{
    double value;
    struct token t = p->token;
    advance(p);
    if (t.kind == NUMBER) {
        emit(p, (struct op) { PUSH, t.number, 0 });
        return 0;
    }
    if (t.kind == NAME && is(p, '(')) {
        double (*f)(double) = find_function(t.text);
        if (!f)
            return complain("no such function");
        advance(p);
        if (sum(p) || !is(p, ')'))
            return complain("missing )");
        advance(p);
        emit(p, (struct op) { CALL, 0, f });
        return 0;
    }
    if (t.kind == NAME && constant(t.text, &value)) {
        emit(p, (struct op) { PUSH, value, 0 });
        return 0;
    }
    if (t.kind == OPERATOR && t.text[0] == '(') {
        if (sum(p) || !is(p, ')'))
            return complain("missing )");
        advance(p);
        return 0;
    }
    if (t.kind == OPERATOR && t.text[0] == '-') {
        if (atom(p))
            return 1;
        emit(p, (struct op) { NEG, 0, 0 });
        return 0;
    }
    return complain("expected a value");
}

static int power(struct parser *p)
{
    if (atom(p))
        return 1;
    if (is(p, '^')) {
        advance(p);
        if (power(p))
            return 1;
        emit(p, (struct op) { POW, 0, 0 });
    }
    return 0;
}

static int product(struct parser *p)
{
    if (power(p))
        return 1;
    while (is(p, '*') || is(p, '/') || is(p, '%')) {
        enum opcode code = is(p, '*') ? MUL : is(p, '/') ? DIV : MOD;
        advance(p);
        if (power(p))
            return 1;
        emit(p, (struct op) { code, 0, 0 });
    }
    return 0;
}

static int sum(struct parser *p)
{
    if (product(p))
        return 1;
    while (is(p, '+') || is(p, '-')) {
        enum opcode code = is(p, '+') ? ADD : SUB;
        advance(p);
        if (product(p))
            return 1;
        emit(p, (struct op) { code, 0, 0 });
    }
    return 0;
}

int parse(const char *text, struct program *program)
{
    struct parser p = { { text }, { 0 }, program };
    advance(&p);
    if (sum(&p))
        return 1;
    return p.token.kind == END ? 0 : complain("something is left over");
}
