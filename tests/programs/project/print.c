#include "calc.h"
#include <stdio.h>

void print_result(double v) { printf("%.10g\n", v); }
