// Goroutines on many threads, the collector, children, files, pipes and sockets through the runtime's poller, signals, a
// nil pointer that is recovered from, preemption of a loop that makes no call: each line tells what came of it.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func goroutines() {
	var all sync.WaitGroup
	numbers := make(chan int, 16)
	for i := 0; i < 50; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			for j := 0; j < 1000; j++ {
				numbers <- i
			}
		}(i)
	}
	go func() { all.Wait(); close(numbers) }()
	sum := 0
	for n := range numbers {
		sum += n
	}
	fmt.Println("sum", sum)
}

func collector() {
	var keep [][]byte
	for i := 0; i < 2000; i++ {
		keep = append(keep, make([]byte, 10000))
		if len(keep) > 100 {
			keep = nil
		}
	}
	runtime.GC()
}

func children() {
	out, err := exec.Command("sh", "-c", "echo child; exit 3").CombinedOutput()
	fmt.Printf("%q %v\n", out, err)
	upper := exec.Command("tr", "a-z", "A-Z")
	upper.Stdin = bytes.NewBufferString("through a child\n")
	out, err = upper.Output()
	fmt.Printf("%q %v\n", out, err)
}

func files() {
	dir, err := os.MkdirTemp("", "files")
	must(err)
	defer os.RemoveAll(dir)
	for i := 0; i < 20; i++ {
		must(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o644))
	}
	found, _ := filepath.Glob(dir + "/*")
	fmt.Println("files", len(found))
}

func pipe() {
	r, w, err := os.Pipe()
	must(err)
	go func() {
		for i := 0; i < 100; i++ {
			fmt.Fprintf(w, "line %d\n", i)
		}
		w.Close()
	}()
	lines := 0
	for s := bufio.NewScanner(r); s.Scan(); lines++ {
	}
	fmt.Println("lines", lines)
}

func sockets() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	got := 0
	for i := 0; i < 20; i++ {
		answer, err := http.Get(fmt.Sprintf("http://%s/%d", l.Addr(), i))
		must(err)
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if string(body) == fmt.Sprintf("/%d", i) {
			got++
		}
	}
	fmt.Println("answers", got)

	dir, err := os.MkdirTemp("", "socket")
	must(err)
	defer os.RemoveAll(dir)
	u, err := net.Listen("unix", dir+"/socket")
	must(err)
	go func() { c, _ := u.Accept(); io.Copy(c, c); c.Close() }()
	c, err := net.Dial("unix", dir+"/socket")
	must(err)
	c.Write([]byte("echo"))
	back := make([]byte, 4)
	io.ReadFull(c, back)
	fmt.Println(string(back))
}

func signals() {
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println(<-got)
	defer func() { fmt.Println("recovered:", recover()) }()
	var nothing *int
	*nothing = 1
}

func preemption() {
	var stop atomic.Bool
	before := time.Now()
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		go func() {
			for n := 0; ; n++ {
				if n&0xfffff == 0 && stop.Load() {
					return
				}
			}
		}()
	}
	time.Sleep(20 * time.Millisecond)
	runtime.GC()
	stop.Store(true)
	fmt.Println("slept", time.Since(before) >= 20*time.Millisecond)
}

func main() {
	goroutines()
	collector()
	children()
	files()
	pipe()
	sockets()
	signals()
	preemption()
	os.Exit(7)
}
