//! The whole programs: shell scripts over the files of [`crate::inputs`]. Their output goes to memory: a tmpfs, or
//! the sandbox's overlay.

use crate::inputs::Inputs;
use std::ffi::OsString;

pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    /// Programs that it requires.
    pub needs: &'static [&'static str],
    /// `$1` is the directory of inputs, `$T` a fresh directory to write to.
    script: &'static str,
}

impl Workload {
    pub fn argv(&self, inputs: &Inputs, scratch: &str) -> Vec<OsString> {
        if self.script.is_empty() {
            return vec!["/bin/true".into()];
        }
        let script = format!("set -e\nT=$(mktemp -d -p {scratch})\n{}\nrm -rf \"$T\"\n", self.script);
        vec!["/bin/sh".into(), "-c".into(), script.into(), "sh".into(), inputs.dir.clone().into()]
    }
}

pub fn all() -> Vec<Workload> {
    vec![
        Workload { name: "true", about: "start and end of a sandbox", needs: &[], script: "" },
        Workload {
            name: "sh-fork",
            about: "a shell that starts 500 programs",
            needs: &[],
            script: "i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i+1)); done",
        },
        Workload {
            name: "sh-pipes",
            about: "100 pipelines of four programs",
            needs: &[],
            script:
                "i=0; while [ $i -lt 100 ]; do seq 1 200 | sed s/1/x/ | grep x | wc -l >/dev/null; i=$((i+1)); done",
        },
        Workload {
            name: "configure",
            about: "a script like ./configure: compiles, greps, tests",
            needs: &["gcc"],
            script: r##"
cd "$T"
for h in stdio stdlib string unistd errno fcntl signal time ctype limits stdint assert math locale no_such_1 no_such_2; do
  printf '#include <%s.h>\nint main(void){return 0;}\n' $h >conftest.c
  if gcc -c conftest.c -o conftest.o 2>conftest.err; then echo "#define HAVE_$h 1" >>config.h; else cat conftest.err >>config.log; fi
  n=$(echo "$h" | sed 's/_/-/g' | tr a-z A-Z); test -n "$n"; expr "x$n" : 'x\(.*\)' >/dev/null
  rm -f conftest*
done
for f in malloc strdup mmap epoll_create1 no_such_function; do
  printf 'char %s(void);\nint main(void){return %s();}\n' $f $f >conftest.c
  if gcc -w -fno-builtin conftest.c -o conftest 2>/dev/null; then echo "#define HAVE_$f 1" >>config.h; fi
  rm -f conftest*
done
sed -e 's/HAVE/HAS/' config.h | sort >config.sorted; grep -c define config.sorted >/dev/null"##,
        },
        Workload {
            name: "c-build",
            about: "make -j2 of 40 C files",
            needs: &["gcc", "make"],
            script: "cp -r \"$1/c\" \"$T/c\"; make -s -j2 -C \"$T/c\"; \"$T/c/prog\"",
        },
        Workload {
            name: "git-status",
            about: "git status in a tree of 8000 files",
            needs: &["git"],
            script: "cd \"$1/repo\"; git -c safe.directory='*' --no-optional-locks status >/dev/null",
        },
        Workload {
            name: "git-log",
            about: "git log -p over 60 commits",
            needs: &["git"],
            script: "cd \"$1/repo\"; git -c safe.directory='*' --no-pager log -p >/dev/null",
        },
        Workload {
            name: "find",
            about: "find /usr with stat of each",
            needs: &[],
            // Directories without permission are reported; that is not what is measured.
            script: "find /usr -xdev -newer /etc/hostname >/dev/null 2>&1 || :",
        },
        Workload {
            name: "tar",
            about: "tar of 8000 small files, and unpacking 2000",
            needs: &["tar"],
            script: "tar cf - -C \"$1\" repo | cat >/dev/null; tar cf - -C \"$1/repo\" d0 d1 | tar xf - -C \"$T\"",
        },
        Workload {
            name: "python-start",
            about: "python started 10 times with some imports",
            needs: &["python3"],
            script: "for i in 1 2 3 4 5 6 7 8 9 10; do python3 -c 'import json, re, subprocess, unittest'; done",
        },
        Workload {
            name: "python-tests",
            about: "a load like a test suite's",
            needs: &["python3"],
            script: "cd \"$T\"; python3 \"$1/tests.py\" 2>/dev/null",
        },
        Workload {
            name: "sqlite",
            about: "sqlite: 300 transactions, then 100000 rows in one",
            needs: &["python3"],
            script: "cd \"$T\"; python3 \"$1/sqlite.py\"",
        },
        Workload {
            name: "compress",
            about: "gzip on every processor at once",
            needs: &["gzip"],
            script: "for i in $(seq $(nproc)); do gzip -6 <\"$1/data\" >\"$T/$i.gz\" & done; wait",
        },
        Workload {
            name: "threads",
            about: "16 threads that meet at barriers, yield and lock",
            needs: &["gcc"],
            script: "\"$1/threads\"",
        },
    ]
}
