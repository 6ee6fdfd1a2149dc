# Go makes system calls of its own, without libc: a runtime with threads, signals for preemption, its own poller. Builds a program
# and runs it, then the tests of two packages that come with Go.
set -e
export GOCACHE="$PWD/cache" GOPATH="$PWD/path" GOFLAGS=-mod=mod GOTOOLCHAIN=local
mkdir src
cp "$PROGRAMS/other/main.go" src/
cd src
printf 'module example\ngo 1.19\n' >go.mod
go vet .
go build -o ../program .
cd ..
status=0
./program || status=$?
echo "status $status"
(cd src && CGO_ENABLED=0 go build -o ../static .)
status=0
./static || status=$?
echo "status $status"
go test container/heap path/filepath | sed 's/[0-9.]*s$//'
# What the tool chain writes differs from run to run.
rm -rf cache path program static
