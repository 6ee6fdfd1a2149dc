# A C library other than the usual: where its calls stand and how its threads, spawns and signals are made differs.
set -e
for how in "" "-static"; do
    musl-gcc -O2 $how "$PROGRAMS/other/musl.c" -o program
    status=0
    ./program || status=$?
    echo "[$how] status $status"
done
