# A POSIX shell: the same ground as the bash script, without its extensions.
set -u
echo "== pipelines"
seq 1 100 | sort -rn | head -2
false | true; echo $?
true | false; echo $?
! true; echo $?
seq 5 | while read n; do echo -n "$n "; done; echo
(echo a; echo b >&2) 2>&1 | sort
yes | head -n 50000 | wc -l

echo "== here-documents"
n=3
cat <<END; cat <<'END2'
$n $((n * 2)) $(echo sub)
END
$n
END2
tr a-z A-Z <<-END
	tabs
	END

echo "== background jobs"
(exit 7) & wait $!; echo $?
sleep 0.1 & p=$!; wait $p; echo $?
for i in 1 2 3 4 5; do (echo $i >part$i; exit $i) & done; wait; cat part?
{ sleep 100 & kill $!; wait $!; echo $?; } 2>/dev/null # it may be reaped before the wait

i=0; while [ $i -lt 100 ]; do true & i=$((i + 1)); done; wait; echo $i
i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i + 1)); done; echo $i

echo "== traps"
(trap 'echo bye' EXIT; echo hi)
(trap 'echo two' INT; kill -INT $(sh -c 'echo $PPID'); echo after)
dash -c 'trap "echo term; exit 3" TERM; kill $$; echo no'; echo $?
dash -c 'kill -9 $$'; echo $?
dash -c 'trap "" TERM; kill $$; echo ignored'
dash -c 'trap "echo usr1" USR1; (sleep 0.1; kill -USR1 $$; sleep 0.1) & wait; echo "wait: $?"; wait'
dash -c 'set -e; false; echo no'; echo $?

echo "== redirections"
exec 3>three; echo x >&3; exec 3>&-; cat three
exec 4<three; read l <&4; echo "$l"; exec 4<&-
echo e >&2
cat nothing-there; echo $?
echo y 2>/dev/null >>three; cat three
command ls /proc/self/fd/0 >/dev/null && echo open

echo "== expansions"
v=/a/b.c; echo "${v##*/} ${v%.*} ${#v} ${unset:-default} ${v:+set}"
set -- 1 '2 3' 4; echo $# "$2"; shift; echo "$*"
for f in /etc/host*s /no/such/*; do echo "$f"; done
f() { echo "in $1"; return 4; }; f x; echo $?
IFS=:; set -- a:b; for x in $*; do echo "$x"; done; unset IFS
eval 'echo "eval $v"'; . ./three 2>/dev/null || echo "dot: $?"
umask 077; : >private; stat -c %a private
test -r private -a ! -x private && echo readable
ulimit -n 50; ulimit -n
cd /usr/../tmp/. && pwd; cd - >/dev/null
printf '%s %d %x %c\n' s 10 255 chr
exec sh -c 'exit 17'
