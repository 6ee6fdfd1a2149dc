/* A calculator, to have something to build. */
#ifndef CALC_H
#define CALC_H
#include <stddef.h>

enum kind { NUMBER, NAME, OPERATOR, END, WRONG };
struct token { enum kind kind; double number; char text[32]; };
struct lexer { const char *at; };
struct token next_token(struct lexer *l);

enum opcode { PUSH, ADD, SUB, MUL, DIV, MOD, POW, NEG, CALL };
struct op { enum opcode code; double value; double (*function)(double); };
struct program { struct op *ops; size_t count, room; };
int parse(const char *text, struct program *p);
int evaluate(const struct program *p, double *result);

struct stack { double values[256]; size_t depth; };
int push(struct stack *s, double v);
int pop(struct stack *s, double *v);

int constant(const char *name, double *value);
double (*find_function(const char *name))(double);
void print_result(double v);
void *grow(void *p, size_t size);
int complain(const char *what);
#endif
