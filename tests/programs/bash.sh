# What shells are made of: pipelines, traps, background jobs, here-documents, process substitution, redirections.
set -u
echo "== pipelines"
seq 1 1000 | sort -rn | head -3
printf 'c\nb\na\n' | tee copy | sort | tr a-z A-Z | paste -sd,
yes | head -c 100000 | wc -c
false | true | (exit 3); echo "${PIPESTATUS[*]} $?"
set -o pipefail; false | true; echo $?; set +o pipefail
sum=0; for i in $(seq 60); do echo $i; done | while read -r n; do ((sum += n)); [ "$n" = 60 ] && echo "$sum"; done
seq 200000 | tail -1
yes | true; echo "${PIPESTATUS[0]}"

echo "== subshells and functions"
f() { local x=$1; ((x > 0)) && { f $((x - 1)); echo "$x"; }; return $((x % 3)); }
f 4; echo "status $?"
(cd / && pwd; exit 9); echo "$? $(pwd | sed 's,.*/,,')"
x=$(echo a; (echo b; echo c >&2) 2>&1); echo "$x"
echo "$(( $(echo 6) * $(echo 7) ))"

echo "== here-documents"
cat <<END
expanded: $((1 + 1)) $(echo sub)
END
cat <<'END'
literal: $((1 + 1)) `x`
END
cat <<-END
	tabs gone
	END
cat <<<"here string"
{ read -r a; read -r b; echo "$b $a"; } <<END
one
two
END
head -c 300000 /dev/zero | tr '\0' z >big
cat <<END | wc -c
$(cat big)
END

echo "== process substitution"
diff <(seq 5) <(seq 2 6)
comm -12 <(printf 'a\nb\nc\n') <(printf 'b\nc\nd\n')
seq 10 > >(sort -n | tail -1 >last); until [ -s last ]; do sleep 0.01; done; cat last
paste <(echo l) <(echo r)
while read -r l; do echo "got $l"; done < <(printf '1\n2\n')

echo "== background jobs"
sleep 0.2 & a=$!
(exit 7) & b=$!
wait $b; echo "b: $?"
wait $a; echo "a: $?"
for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i; echo "$i" >>order; exit $i) & done; wait
sort order | paste -sd' '; rm order
bash -c '(sleep 0.1; exit 4) & wait -n; echo "wait -n: $?"' 
sleep 100 & kill $!; wait $! 2>/dev/null; echo "killed: $?"
sleep 100 & kill -9 $!; wait $! 2>/dev/null; echo "killed: $?"
{ sleep 0.05; echo late; } & echo early; wait
coproc cat; echo through >&"${COPROC[1]}"; read -r line <&"${COPROC[0]}"; echo "$line"
eval "exec ${COPROC[1]}>&-"; wait; echo "coproc: $?"
set -m; sleep 0.01 & wait; (echo in a group of its own) & wait; set +m

echo "== traps"
(trap 'echo bye' EXIT; echo hi)
(trap 'echo got usr1' USR1; kill -USR1 $BASHPID; echo after)
(trap 'echo got term; exit 5' TERM; sleep 0.05 & kill -TERM $BASHPID; wait; echo not reached); echo "status $?"
(trap '' INT; kill -INT $BASHPID; echo ignored)
(kill -TERM $BASHPID); echo "terminated: $?"
(trap 'echo child done' CHLD; set -m; /bin/true; :) | sort -u
(set -e; trap 'echo err on false' ERR; false; echo not reached); echo "status $?"
bash -c 'trap "echo caught; exit 3" HUP; while :; do sleep 0.01; done' & sleep 0.3; kill -HUP $!; wait $!; echo "status $?"
timeout 0.2 sleep 10; echo "timeout: $?"
(timeout -s KILL 0.2 sleep 10; echo "timeout: $?") 2>/dev/null
(trap '' PIPE; sleep 0.05; echo x; echo "write: $?" >&2) 2>pipe_err | true; sed 's/.*write/write/' pipe_err

echo "== redirections"
exec 5>file5 6<<<"from six"; echo to five >&5; read -r l <&6; echo "$l"; exec 5>&- 6<&-; cat file5
echo err >&2
{ echo o; echo e >&2; } 2>&1 | sort
{ echo o; echo e >&2; } >both 2>&1; cat both
echo 1 >app; echo 2 >>app; cat app
set -C; (echo x >app) 2>/dev/null; echo "noclobber $?"; set +C
exec 7<>rw; echo abc >&7; exec 7>&-; cat rw
cat </dev/null; echo null >/dev/null
cat /no/such/file; echo "status $?"
echo x >/no/such/dir/file; echo "status $?"
(echo fd >/dev/fd/1; echo std >/dev/stdout; echo e >/dev/stderr) 2>&1 | cat
ls -d /proc/self/fd/[012]

echo "== variables, patterns, arrays"
declare -A m=([one]=1 [two]=2); for k in one two; do echo "$k=${m[$k]}"; done
a=(x y 'z z'); echo "${#a[@]} ${a[-1]} ${a[@]:1:1}"
v=file.tar.gz; echo "${v%%.*} ${v#*.} ${v/tar/TAR} ${v^^}"
touch g1 g2 h1; echo g* [gh]1 {1..3}{a,b}; shopt -s extglob nullglob
echo !(g*|h*|*[a-z]) none*
printf '%05d|%-5s|%q\n' 42 ab 'a b'
case foo.c in *.h) echo h ;; *.c) echo c ;; esac
[[ abc =~ ^a(.)c$ ]] && echo "${BASH_REMATCH[1]}"
mapfile -t lines < <(seq 3); echo "${#lines[@]} ${lines[2]}"
select_in() { local IFS=,; echo "$*"; }; select_in 1 2 3
umask 027; umask; touch masked; stat -c %a masked
ulimit -n 100; ulimit -n; ulimit -c 0; ulimit -c
exec 3>&1; echo "$(echo direct >&3; echo captured)"; exec 3>&-
type cd true | head -1; command -v sh; hash -r
echo "$BASH_SUBSHELL $(echo "$BASH_SUBSHELL") $SHLVL"
printf 'a b\tc' | { IFS= read -r -n 3 x; echo "[$x]"; }
read -r -t 0.05 y </dev/zero; echo "read: $(($? > 128))"
exec 9>lock; flock 9; (flock -n 9 && echo same lock); (exec 9>&-; flock -n lock true || echo locked); exec 9>&-
exit 42
