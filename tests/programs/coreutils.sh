# The coreutils, each at work on files made here.
set -u
mkdir -p d/e/f && echo text >d/file && printf 'b 2\na 1\nc 3\n' >table && seq 1000 >numbers
echo "== files"
cp -a d d2 && diff -r d d2 && echo same
cp --reflink=auto numbers n2; cmp numbers n2 && echo same
cp -r d/. d3; ls d3; cp -l numbers hard; stat -c '%h %s %A' hard
ln -s d/file soft; readlink soft; readlink -f soft | sed 's,.*/d,d,'; realpath --relative-to=. d/../soft
cp -P soft soft2; ls -l soft2 | sed 's/.*soft2/soft2/'
mv d2 d4 && ls d4; mv -n numbers n2; mv numbers moved; ls moved; mv moved numbers
mv d4 no/such; rm d; rm -f nothing; rmdir d; echo "status $?"
rm -r d4 d3; mkdir -m 700 private; stat -c '%a %F' private; mkdir -p d/x/y d/x/z; rmdir -p d/x/y; ls d/x
touch -d @86400 old; stat -c '%Y %X' old; touch -r old same; stat -c %Y same; test old -ot numbers && echo older
touch -d '2001-02-03 04:05:06.789 UTC' fine; stat -c '%y' fine
chmod 4755 same; stat -c %a same; chmod u-s,go= same; stat -c %A same; chmod +t private; stat -c %A private
install -m 640 -D numbers deep/er/n; stat -c '%a %s' deep/er/n
truncate -s 10000 sparse; stat -c '%s %b' sparse; truncate -s 3 n2; cat n2; echo
dd if=/dev/zero of=blocks bs=1k count=20 status=none; dd if=numbers of=blocks bs=10 seek=3 count=2 conv=notrunc status=none; cksum blocks
dd if=numbers bs=7 skip=2 count=3 status=none; echo; fallocate -l 5000 alloc && stat -c %s alloc
mkfifo pipe; (echo through a fifo >pipe &) ; cat pipe; stat -c %F pipe
t=$(mktemp -p . tmp.XXXX); stat -c '%a %s' "$t"; rm "$t"; t=$(mktemp -d ./tmpd.XXXX); stat -c %F "$t"; rmdir "$t"
ls -la d | sed 1d | awk '{print $1, $NF}'; ls -F; ls -R d; ls -1S numbers table; ls -d /proc/self/fd
ls nothing-there; echo "status $?"; stat nothing-there; cat d; echo "status $?"
find . -type d -empty | sort; du -a --apparent-size -b numbers table; test -e soft -a -L soft && echo link
shred -n 1 -u alloc; test -e alloc || echo gone; unlink same; link table linked; stat -c %h table; pathchk -p 'a b'; sync numbers
df --output=target . >/dev/null && echo df; touch -c absent; test -e absent || echo absent
tail -c 5 numbers; tail -n +998 numbers; head -c -3890 numbers; (tail -f -s 0.05 --pid=$$ table & p=$!; sleep 0.3; echo d 4 >>table; sleep 0.4; kill $p)
chown "$(id -u):$(id -g)" table && echo owned; chgrp "$(id -g)" table && echo group

echo "== text"
sort table; sort -k2,2nr table; sort -u table table | wc -l; sort -R --random-source=numbers numbers | md5sum; sort -m table table | sort -c; echo $?
seq 50000 | sort --parallel=2 -S 100k -r | md5sum; ls tmp* sort* 2>/dev/null
cut -d' ' -f2 table; paste table table; join table table; comm table table | head -1; uniq -c <(printf 'a\na\nb\n')
tr -d 0-9 <table; tr -s l <<<hello; tac table; rev <<<abc; nl table; wc table numbers; wc -L table
fold -w 10 <<<'a long line of words'; fmt -w 12 <<<'a long line of words'; expand <<<$'a\tb'; unexpand -a <<<'a        b'
od -c table | head -2; od -An -tx1 <<<hi; base64 <<<text; base64 -d <<<dGV4dAo=; base32 <<<t; split -n 3 numbers part; ls part*; cat part* | cmp - numbers && echo same
csplit -s numbers 100 500; wc -l xx*; pr -h h -l 20 table | tail -n +4 | head -5; tsort <<<'a b b c'; numfmt --to=iec 1048576; column -t table 2>/dev/null
md5sum table; sha1sum table; sha256sum numbers; sha512sum table | cut -c1-20; b2sum table | cut -c1-20; sum table; md5sum table >sums; md5sum -c sums
printf '%s\n' a b | tee t1 t2 >/dev/null; cat t1 t2; shuf -i 1-10 --random-source=numbers | paste -sd' '; factor 1234567890; expr 6 \* 7; seq -s, 1 0.5 3
printf '%.3f %e %s\n' 3.14159 1000 x; echo -e 'a\tb\x41'; date -u -d @1000000000; date -u -d '2020-02-30' ; env -i A=1 env; basename /a/b.c .c; dirname /a/b
echo "== processes"
nice -n 5 nice; timeout 5 echo in time; timeout 0.1 sleep 5; echo $?; nohup echo nohup 2>/dev/null; env X=y sh -c 'echo $X'; stdbuf -oL echo buf; printenv NOTHING; echo $?
id -u; whoami; groups | wc -w; uname -s; uname -m; nproc >/dev/null && echo nproc; tty; echo $?; hostid >/dev/null; uptime >/dev/null 2>&1; test -t 0; echo $?; kill -l 9; sleep 0.01; true; false; echo $?
chroot /no/such true; echo "status $?"; env nothing-there; echo "status $?"; env /etc; echo "status $?"; mkdir d; echo "status $?"
