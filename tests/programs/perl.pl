# Perl: files, processes, pipes, signals, sockets, sorting, regular expressions.
use strict;
use warnings;
use Fcntl qw(:flock :seek O_RDWR O_CREAT O_EXCL);
use File::Find;
use File::Temp qw(tempfile tempdir);
use IO::Handle;
use IO::Select;
use IPC::Open3;
use POSIX qw(:sys_wait_h :signal_h dup2 setsid);
use Socket;
use Time::HiRes qw(sleep time alarm);
$| = 1;

print "== files\n";
open(my $f, '>', 'data') or die; print $f "line $_\n" for 1 .. 5000; close $f;
print -s 'data', "\n";
open($f, '<', 'data') or die; my @l = <$f>; close $f; print scalar(@l), " $l[4999]";
sysopen(my $x, 'data', O_RDWR | O_CREAT | O_EXCL) or print "exclusive: $!\n";
open($f, '+<', 'data') or die; seek($f, 5, SEEK_SET); read($f, my $buf, 6); $buf =~ s/\n/|/g; print "$buf ", tell($f), "\n"; truncate($f, 10); close $f; print -s 'data', "\n";
mkdir 'dir' or die; mkdir 'dir' or print "mkdir: $!\n"; symlink('../data', 'dir/link'); print readlink('dir/link'), "\n"; link('data', 'dir/hard'); print((stat 'data')[3], "\n");
rename('dir/hard', 'dir/renamed') or die; my @found; find(sub { push @found, $File::Find::name }, '.'); print join(' ', sort @found), "\n";
opendir(my $d, 'dir'); print join(' ', sort grep { !/^\./ } readdir $d), "\n"; closedir $d; chmod 0600, 'data'; printf "%o\n", (stat 'data')[2] & 07777; utime(1e9, 1e9, 'data'); print((stat 'data')[9], "\n"); print "no: $!\n" unless open(my $n, '<', 'nothing/there');
open($f, '>>', 'data'); flock($f, LOCK_EX) or die; print(do { my $p = fork; if (!$p) { open(my $g, '<', 'data'); POSIX::_exit(flock($g, LOCK_SH | LOCK_NB) ? 0 : 1) } waitpid($p, 0); $? >> 8 }, "\n"); close $f; my ($t, $name) = tempfile(DIR => '.'); print $t "temp"; close $t; print -s $name, "\n"; unlink $name;

print "== processes\n";
my @pids = map { my $n = $_; my $p = fork // die; if (!$p) { sleep 0.01 * $n; POSIX::_exit($n) } $p } 1 .. 6;
my %status; while ((my $p = waitpid(-1, 0)) > 0) { $status{$p} = $? >> 8 } print join(' ', map { $status{$_} } @pids), "\n";
print `echo backticks; exit 3`, $? >> 8, "\n"; system('exit 4'); print $? >> 8, "\n"; system('kill -9 $$'); print $? & 127, "\n"; print system('nothing-there-at-all') == -1 ? "not found: $!\n" : "?\n";
open(my $p, '-|', 'seq 100000 | tail -1') or die; print <$p>; close $p; open($p, '|-', 'sort -n | head -2') or die; print $p "$_\n" for reverse 1 .. 50; close $p;
my $pid = open3(my $in, my $out, undef, 'cat; echo err >&2'); print $in "through open3\n"; close $in; print sort <$out>; waitpid($pid, 0);
pipe(my $r, my $w); if (!(my $c = fork)) { close $r; print $w "x" x 200000; close $w; POSIX::_exit(0) } close $w; my $total = 0; while (my $n = sysread($r, my $b, 65536)) { $total += $n } print "$total\n"; wait; print wait, " $!\n";
if (!(my $c = fork)) { setsid(); print getpgrp() == $$ ? "session leader\n" : "?\n"; exec 'sh', '-c', 'echo from exec; exit 6' } wait; print $? >> 8, "\n"; print waitpid(-1, WNOHANG), "\n"; local $0 = 'renamed'; print "ok\n" if getppid() > 0;

print "== signals\n";
{ local $SIG{USR1} = sub { print "usr1\n" }; kill USR1 => $$; sleep 0.01 } { local $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 0.05; sleep 5; }; print "got $@" }
{ local $SIG{CHLD} = sub { while (waitpid(-1, WNOHANG) > 0) { print "reaped ", $? >> 8, "\n" } }; if (!fork) { POSIX::_exit(9) } sleep 5; sleep 0.01 } { local $SIG{PIPE} = sub { print "sigpipe\n" }; pipe(my $a, my $b); close $a; syswrite($b, "x") or print "write: $!\n" }
my $set = POSIX::SigSet->new(SIGINT); sigprocmask(SIG_BLOCK, $set); { local $SIG{INT} = sub { print "int after unblocking\n" }; kill INT => $$; my $pending = POSIX::SigSet->new; sigpending($pending); print $pending->ismember(SIGINT), "\n"; sigprocmask(SIG_UNBLOCK, $set) }
if (!(my $c = fork)) { $SIG{TERM} = 'DEFAULT'; kill STOP => $$; POSIX::_exit(1) } else { waitpid($c, WUNTRACED); print WIFSTOPPED($?) ? "stopped " . WSTOPSIG($?) . "\n" : "?\n"; kill TERM => $c; kill CONT => $c; waitpid($c, 0); print $? & 127, "\n" }

print "== sockets and select\n";
socketpair(my $s1, my $s2, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die; $_->autoflush(1) for $s1, $s2; if (!fork) { close $s1; while (my $l = <$s2>) { print $s2 uc $l } POSIX::_exit(0) } close $s2; print $s1 "hello\n"; print scalar <$s1>; print $s1 "again\n"; print scalar <$s1>; shutdown($s1, 1); print defined(<$s1>) ? "?" : "eof", "\n"; wait;
socket(my $srv, AF_UNIX, SOCK_STREAM, 0) or die; bind($srv, sockaddr_un('sock')) or die "bind $!"; listen($srv, 5); if (!fork) { for (1 .. 3) { socket(my $c, AF_UNIX, SOCK_STREAM, 0); connect($c, sockaddr_un('sock')) or die; syswrite($c, "client $_\n") } POSIX::_exit(0) } for (1 .. 3) { accept(my $c, $srv); print scalar <$c> } wait; print -S 'sock' ? "socket\n" : "?\n"; unlink 'sock';
pipe(my $r1, my $w1); pipe(my $r2, my $w2); my $sel = IO::Select->new($r1, $r2); print scalar($sel->can_read(0.02)), "\n"; syswrite($w2, 'x'); my @ready = $sel->can_read(1); print @ready == 1 && $ready[0] == $r2 ? "second\n" : "?\n"; my $rin = ''; vec($rin, fileno($r2), 1) = 1; print scalar(select($rin, undef, undef, 0)), "\n";

print "== computing\n";
my %words; $words{$_}++ for map { $_ * 7919 % 1000 } 1 .. 50000; print scalar(keys %words), ' ', (sort { $words{$b} <=> $words{$a} || $a <=> $b } keys %words)[0], "\n"; my @s = sort { $a <=> $b } map { ($_ * 1103515245 + 12345) % 2147483648 } 1 .. 20000; print "$s[0] $s[-1]\n"; my $text = 'the quick brown fox ' x 1000; my $n = () = $text =~ /\b(\w)\w*\b/g; print "$n\n"; (my $u = $text) =~ s/(\w+)/\u$1/g; print substr($u, 0, 20), "\n"; printf "%.10f %s %x\n", atan2(1, 1) * 4, 1e100, 255; print pack('A3 n C', 'abc', 258, 7) eq "abc\x01\x02\x07" ? "packed\n" : "?\n"; print join(',', (localtime(0))[5, 4, 3]), "\n"; print "$ENV{LC_ALL}\n"; warn "to stderr\n"; eval { die { code => 5 } }; print $@->{code}, "\n"; END { print "end block\n" } exit 23;
