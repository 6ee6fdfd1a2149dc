"""multiprocessing with each start method: pools, queues, pipes, locks, shared memory, managers, crashes."""
import multiprocessing as mp, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

def square(n): return n * n
def add(v, lock, n):
    for _ in range(n):
        with lock: v.value += 1
def produce(q, n): [q.put(("item", i, "x" * 1000)) for i in range(n)]; q.put(None)
def echo(c):
    while (m := c.recv()) is not None: c.send(m)
def fill(name, i):
    m = shared_memory.SharedMemory(name); m.buf[i] = i + 1; m.close()
def crash(): os.kill(os.getpid(), signal.SIGKILL)
def leave(n): sys.exit(n)
def wait_for(e, b): e.wait(); b.wait()
def boom(_): raise ValueError("in a process")

def main(method):
    print("==", method)
    ctx = mp.get_context(method)
    with ctx.Pool(4) as pool:
        print(sum(pool.map(square, range(1000))), pool.apply(square, (7,)), sorted(pool.imap_unordered(square, range(5))))
        try: pool.map(boom, range(3))
        except ValueError as e: print(e)
        print([r.get(10) for r in [pool.apply_async(square, (i,)) for i in range(10)]])
    v, lock = ctx.Value("i", 0), ctx.Lock()
    ps = [ctx.Process(target=add, args=(v, lock, 300)) for _ in range(4)]; [p.start() for p in ps]; [p.join() for p in ps]; print(v.value, [p.exitcode for p in ps])
    q = ctx.Queue(); p = ctx.Process(target=produce, args=(q, 200)); p.start(); n = 0
    while (x := q.get()) is not None: n += x[1] + len(x[2])
    p.join(); print(n)
    a, b = ctx.Pipe(); p = ctx.Process(target=echo, args=(b,)); p.start()
    for m in ("text", {"k": [1, 2]}, b"b" * 300000): a.send(m); print(a.recv() == m)
    a.send(None); p.join(); print(p.exitcode, a.poll(0))
    m = shared_memory.SharedMemory(create=True, size=100)
    ps = [ctx.Process(target=fill, args=(m.name, i)) for i in range(4)]; [p.start() for p in ps]; [p.join() for p in ps]; print(bytes(m.buf[:5])); m.close(); m.unlink()
    for target, args in ((crash, ()), (leave, (5,))): p = ctx.Process(target=target, args=args); p.start(); p.join(); print(p.exitcode)
    p = ctx.Process(target=time.sleep, args=(100,)); p.start(); print(p.is_alive()); p.terminate(); p.join(5); print(p.exitcode)
    e, bar = ctx.Event(), ctx.Barrier(4); ps = [ctx.Process(target=wait_for, args=(e, bar)) for _ in range(3)]; [p.start() for p in ps]; e.set(); bar.wait(30); [p.join() for p in ps]; print("passed")
    arr = ctx.Array("d", 10); arr[3] = 2.5; print(arr[:4])

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"): main(method)
    with mp.Manager() as manager:
        d, l = manager.dict(), manager.list([1]); d["x"] = 1; l.append(2); p = mp.Process(target=d.update, args=({"y": 2},)); p.start(); p.join(); print(dict(d), list(l))
    with ProcessPoolExecutor(3) as pool: print(list(pool.map(square, range(20), chunksize=3)))
    print(len(mp.active_children()), mp.current_process().name)
