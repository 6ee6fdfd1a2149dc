"""threading: locks, conditions, barriers, queues, timers, thread pools, signals to threads, large results."""
import hashlib, mmap, os, queue, signal, sys, tempfile, threading, time, zlib
from concurrent.futures import ThreadPoolExecutor, as_completed

count = 0
lock = threading.Lock()
def add():
    global count
    for _ in range(5000):
        with lock: count += 1
ts = [threading.Thread(target=add) for _ in range(16)]; [t.start() for t in ts]; [t.join() for t in ts]; print(count)
q, out = queue.Queue(10), queue.Queue()
def worker():
    while (n := q.get()) is not None: out.put(n * n)
ts = [threading.Thread(target=worker) for _ in range(4)]; [t.start() for t in ts]
for n in range(2000): q.put(n)
[q.put(None) for _ in ts]; [t.join() for t in ts]; print(sum(out.get() for _ in range(2000)))
barrier = threading.Barrier(6); order = []
def step(i):
    for phase in range(20): barrier.wait(); order.append(phase)
ts = [threading.Thread(target=step, args=(i,)) for i in range(6)]; [t.start() for t in ts]; [t.join() for t in ts]; print(order == sorted(order), len(order))
cond, items = threading.Condition(), []
def consume():
    with cond:
        while len(items) < 3: cond.wait()
    return items
with ThreadPoolExecutor(3) as pool:
    f = [pool.submit(consume) for _ in range(3)]
    for i in range(3):
        time.sleep(0.01)
        with cond: items.append(i); cond.notify_all()
    print([x.result() for x in f])
ev = threading.Event(); threading.Timer(0.05, ev.set).start(); print(ev.wait(5), ev.wait(0.01)); print(threading.Event().wait(0.02))
sem = threading.BoundedSemaphore(2); inside = peak = 0
def limited(_):
    global inside, peak
    with sem:
        with lock: inside += 1; peak = max(peak, inside)
        time.sleep(0.005)
        with lock: inside -= 1
with ThreadPoolExecutor(8) as pool: list(pool.map(limited, range(24)))
print(peak)
data = os.urandom(16) * 65536
with ThreadPoolExecutor(4) as pool: print(len({f.result() for f in as_completed([pool.submit(lambda: hashlib.sha256(zlib.decompress(zlib.compress(data, 1))).hexdigest()) for _ in range(8)])}))
local = threading.local(); local.x = 1
def other(): local.x = 2; return local.x
with ThreadPoolExecutor(1) as pool: print(pool.submit(other).result(), local.x)
def fails(): raise ValueError("in a thread")
threading.excepthook = lambda a: print("hook", a.exc_value); t = threading.Thread(target=fails); t.start(); t.join()
got = []; signal.signal(signal.SIGUSR1, lambda *_: got.append(threading.current_thread() is threading.main_thread()))
def shoot(): signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1); os.kill(os.getpid(), signal.SIGUSR1)
t = threading.Thread(target=shoot); t.start(); t.join(); time.sleep(0.02); print(bool(got) and all(got))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01); ticks = []; signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
while len(ticks) < 5: time.sleep(1)
signal.setitimer(signal.ITIMER_REAL, 0); print("ticks")
with tempfile.TemporaryFile(dir=".") as f:
    f.truncate(1 << 16)
    with mmap.mmap(f.fileno(), 1 << 16) as m:
        def fill(i): m[i * 4096:(i + 1) * 4096] = bytes([i]) * 4096
        with ThreadPoolExecutor(8) as pool: list(pool.map(fill, range(16)))
        f.seek(0); print(hashlib.md5(f.read()).hexdigest())
r, w = os.pipe()
def writer(): [os.write(w, b"x" * 50000) for _ in range(20)]; os.close(w)
t = threading.Thread(target=writer); t.start(); n = 0
while b := os.read(r, 1 << 16): n += len(b)
t.join(); print(n, threading.active_count())
ev = threading.Event(); ts = [threading.Thread(target=ev.wait, daemon=True) for _ in range(200)]; [t.start() for t in ts]; print(threading.active_count()); ev.set(); [t.join() for t in ts]
sys.setswitchinterval(1e-5)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
with ThreadPoolExecutor(8) as pool: print(list(pool.map(fib, [15] * 8)))
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
print("end with a daemon thread still asleep")
