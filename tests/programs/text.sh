# find, xargs, grep, sed, awk over a tree of small files.
set -u
mkdir -p tree/{a,b,c}/{1,2,3}
for d in tree/*/*; do for i in 1 2 3 4 5; do echo "file $i of $d: the quick brown fox $((i * i))" >"$d/f$i.txt"; done; : >"$d/empty"; done
ln -s ../a/1/f1.txt tree/b/link; ln -s nowhere tree/b/dangling; mkfifo tree/c/fifo; chmod 600 tree/a/1/f1.txt; touch -d @0 tree/a/2/f2.txt; mkdir tree/a/'with space'; echo x >tree/a/'with space'/'a  b'
echo "== find"
find tree | sort | md5sum; find tree -name 'f[12].txt' | sort | head -4; find tree -type f -empty | sort; find tree -type l -printf '%p -> %l\n' | sort; find tree -xtype l; find -L tree -samefile tree/b/link | sort
find tree -perm 600 -type f; find tree ! -newermt @100 -type f; find tree -type p; find tree -maxdepth 1 -mindepth 1 | sort; find tree -path '*/b/*' -prune -o -name 'f1.txt' -print | sort
find tree -name f3.txt -exec cat {} + | sort; find tree -name f4.txt -execdir echo {} \; | sort -u; find tree -name f5.txt -delete; find tree -name 'f?.txt' | wc -l; find tree -size +1c -type f | wc -l
find tree -type f -printf '%m %s %h %f %d\n' | sort | tail -3; find nothing-there; echo "status $?"; find tree -regex '.*/[ab]/1/.*' | wc -l; find tree -links 1 -type f -newer tree/a/2/f2.txt | wc -l; find tree -user "$(id -u)" -maxdepth 0
echo "== xargs"
find tree -type f -print0 | sort -z | xargs -0 cat | md5sum; seq 20 | xargs -n 6 echo; seq 8 | xargs -P 4 -I{} sh -c 'sleep 0.0{}; echo {}' | sort -n | paste -sd' '
echo a b c | xargs -d' ' -n1; printf 'x\0y' | xargs -0 -t echo; echo 1 | xargs -I% sh -c 'exit %'; echo "status $?"; seq 100000 | xargs echo | wc -l >/dev/null; seq 30000 | xargs -s 4000 echo | wc -w
echo 255 | xargs sh -c 'exit $0'; echo "status $?"; echo x | xargs nothing-there; echo "status $?"; : | xargs -r echo not; yes | head -1000 | xargs -P 3 -n 50 echo | wc -w
echo "== grep"
grep -rn 'fox 9' tree | sort | head -3; grep -rl 'fox 16' tree | sort | tail -2; grep -c quick tree/a/1/*.txt; grep -v quick tree/a/1/f1.txt; echo "status $?"; grep -E '(a|b)/[12].*fox (1|4)$' -rh tree | sort | head -2
grep -o '[0-9]*$' tree/a/1/f2.txt; grep -q fox tree/a/1/f1.txt && echo found; grep -i QUICK -A1 -B1 tree/a/1/f1.txt; grep -P '\d{2}$' -r tree | sort | head -2; grep x nothing-there tree/a; echo "status $?"; grep -z x <(printf 'a\0x\0') | tr '\0' '\n'
seq 100000 | grep -c 7; seq 100000 | grep -F -f <(seq 99990 100000) | paste -sd' '; head -c 1000000 /dev/zero | grep -c x; grep -w the tree/a/2/f2.txt; zgrep fox <(gzip -nc tree/a/1/f1.txt)
echo "== sed"
sed -n '2,4p' <(seq 10); sed 's/quick/slow/;s/\(brown\) \(fox\)/\2 \1/' tree/a/1/f1.txt; sed -i.bak 's/fox/dog/' tree/a/3/*.txt; cat tree/a/3/f1.txt tree/a/3/f1.txt.bak; ls tree/a/3; sed -E '/5/,/8/d' <(seq 10) | paste -sd' '
sed '$!N;s/\n/+/' <(seq 5); sed -n '/3/{p;q}' <(seq 10); sed 's/./\U&/g' <<<shout; sed -e '1i\top' -e '$a\end' <<<mid; sed 'y/abc/xyz/' <<<aabbcc; sed --debug -n p </dev/null >/dev/null; sed -n '$=' <(seq 777); sed 'w out.txt' <<<copy; cat out.txt; sed s/x <<<x; echo "status $?"
echo "== awk"
for awk in mawk gawk awk; do
    "$awk" '{ s += $NF } END { print s, NR }' tree/*/1/f?.txt; "$awk" -F: '{ print $1 }' tree/b/1/f1.txt; seq 100 | "$awk" '$1 % 15 == 0 { n[$1 % 2]++ } END { print n[0], n[1] }'; "$awk" 'BEGIN { printf "%5.2f %s %d\n", 3.14159, "x", 42; while (("seq 3" | getline l) > 0) print "read", l; close("seq 3"); print "b\na" | "sort"; close("sort"); exit 3 }'; echo "status $?"
    "$awk" 'BEGIN { print length("abc"), substr("hello", 2, 3), index("foobar", "bar"), toupper("x"); s = "aaa"; gsub(/a/, "b", s); print s; print "to file" > "awk.out"; close("awk.out"); getline x < "awk.out"; print x; system("exit 5"); print ENVIRON["LC_ALL"] }'; seq 200000 | "$awk" '{ s += $1 } END { print s }'
done
gawk 'BEGIN { cmd = "sort"; print "z\na" |& cmd; close(cmd, "to"); while ((cmd |& getline l) > 0) print l; n = split("3 1 2", a); asort(a); print a[1], a[3]; print strftime("%Y", 0, 1) }'
