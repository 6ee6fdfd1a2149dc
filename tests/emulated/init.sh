#!/bin/busybox sh
# Process 1 of the emulated machine: runs what the kernel command line asks for, says how it went, and switches the machine off.
# A root file system that is an initramfs cannot be pivoted away from, so first everything moves to a tmpfs.
if [ "$1" != moved ]; then
    mkdir -p /proc /new
    mount -t proc proc /proc
    mount -t tmpfs -o mode=755 root /new
    cp -a /bin /usr /etc /lib /lib64 /init /runsc-rs /guest-tests /new/ 2>/dev/null
    mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/root /new/run /new/var/tmp
    chmod 1777 /new/tmp /new/var/tmp
    umount /proc
    exec switch_root /new /init moved
fi
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
cd /tmp
word() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
passed=0 failed=0
judge() { # NAME STATUS OUTPUT
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED $1 (status $2)"
        tail -n 5 "$3"
    fi
}
echo "EMULATED: Linux $(uname -r), $(nproc) processors"

# Many programs at once, in each way of handing calls over.
for mode in "--hand-off adaptive" "--hand-off sleep" "--hand-off spin" "--patch off" "--workers 8"; do
    timeout -k 5 300 /runsc-rs run $mode -- /bin/busybox sh -c '
        n=0; while [ $n -lt 24 ]; do
            (i=0; while [ $i -lt 8 ]; do /bin/busybox true || exit 1; i=$((i + 1)); done; echo done) &
            n=$((n + 1))
        done; wait' >/tmp/out 2>&1
    status=$?
    [ "$(grep -c '^done$' /tmp/out)" = 24 ] || status=${status}lost
    judge "parallel load $mode" "$status" /tmp/out
done

# The guest cases: those that bare Linux passes here must pass in the sandbox.
only=$(word cases)
every=$(word every)
n=0
for case in $(/guest-tests list | grep -E "${only:-.}"); do
    n=$((n + 1))
    [ $((n % ${every:-1})) = 0 ] || continue
    if ! timeout -k 5 120 /guest-tests run "$case" >/tmp/out 2>&1; then
        echo "LEFT OUT $case: bare Linux fails it here: $(tail -n 1 /tmp/out)"
        continue
    fi
    timeout -k 5 120 /runsc-rs run -- /guest-tests run "$case" >/tmp/out 2>&1
    judge "$case" $? /tmp/out
done
echo "EMULATED: $passed passed, $failed failed"
poweroff -f
