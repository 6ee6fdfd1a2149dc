# sqlite3: a hundred thousand inserts, one transaction and many; indices, WAL with two processes, locks, rollback.
set -u
echo "== one transaction"
{ echo 'create table t(id integer primary key, name text, n real); begin;'; seq 100000 | awk '{ printf "insert into t values(%d, '\''name %d'\'', %.3f);\n", $1, $1 * 7919 % 100003, $1 / 7 }'; echo 'commit;'; } | sqlite3 a.db
sqlite3 a.db 'select count(*), sum(id), round(sum(n), 2), max(name) from t; pragma integrity_check; pragma page_count'
sqlite3 a.db 'create index i on t(name); analyze; select id from t where name = "name 500"; explain query plan select * from t where name = "x"'
sqlite3 a.db 'select id % 10 as k, count(*), round(avg(n), 3) from t group by k order by k; update t set n = -n where id % 3 = 0; delete from t where id % 5 = 0; select count(*), round(sum(n), 3) from t; vacuum; pragma integrity_check'
sqlite3 a.db 'with recursive f(a, b) as (select 0, 1 union all select b, a + b from f limit 60) select max(a) from f; select group_concat(name) from (select name from t order by n limit 3)'
echo "== many transactions"
sqlite3 b.db 'create table t(n)'; for i in 1 2 3 4 5 6 7 8 9 10; do sqlite3 b.db "insert into t values($i)"; done; seq 300 | sed 's/.*/insert into t values(&);/' | sqlite3 b.db; sqlite3 b.db 'select count(*), sum(n) from t'
printf 'begin;\ninsert into t values(1);\nrollback;\nselect count(*) from t;\n' | sqlite3 b.db; sqlite3 b.db 'pragma journal_mode = truncate; insert into t values(0); pragma journal_mode = persist; insert into t values(0); pragma journal_mode = memory; insert into t values(0); select count(*) from t'; ls b.db*
echo "== write-ahead log and two processes"
sqlite3 w.db 'pragma journal_mode = wal; create table t(n)'
for p in 1 2 3; do (i=0; while [ $i -lt 40 ]; do sqlite3 -cmd '.timeout 20000' w.db "insert into t values($p)" || exit 1; i=$((i + 1)); done) & done; wait
sqlite3 w.db 'select n, count(*) from t group by n; pragma wal_checkpoint(truncate)'; ls w.db*
for p in 1 2 3; do (i=0; while [ $i -lt 20 ]; do sqlite3 -cmd '.timeout 20000' b.db "insert into t values(100 + $p)" || exit 1; i=$((i + 1)); done) & done; wait; sqlite3 b.db 'select n, count(*) from t where n > 100 group by n'
echo "== mistakes"
sqlite3 b.db 'select * from nothing'; echo "status $?"; head -c 5000 /dev/zero | tr '\0' x >c.db; sqlite3 c.db 'select 1 from t'; echo "status $?"; sqlite3 /no/such/dir/x.db 'select 1 from t'; echo "status $?"
sqlite3 a.db .dump | sha256sum; sqlite3 -csv a.db 'select * from t limit 3'; sqlite3 a.db .dump | sqlite3 d.db; sqlite3 d.db 'select count(*) from t'; sqlite3 a.db '.backup e.db'; sqlite3 e.db 'select count(*) from t'; rm w.db* b.db*; sqlite3 -batch :memory: 'create table m(x); insert into m values(zeroblob(5000000)); select length(x) from m'
sqlite3 a.db 'pragma mmap_size = 100000000; select count(*), sum(length(name)) from t'
