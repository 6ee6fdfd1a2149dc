"""asyncio: tasks, timers, streams over Unix sockets, subprocesses, signals, executors; on epoll, poll and select loops."""
import asyncio, os, selectors, signal, socket, sys, time

async def numbers(n):
    for i in range(n): await asyncio.sleep(0); yield i

async def serve(r, w):
    while line := await r.readline(): w.write(line.upper()); await w.drain()
    w.close()

async def client(path, i):
    r, w = await asyncio.open_unix_connection(path); total = 0
    for k in range(20): w.write(f"client {i} {k}\n".encode()); total += len(await r.readline())
    w.close(); await w.wait_closed(); return total

async def main():
    print(sum([i async for i in numbers(100)]), await asyncio.gather(*(asyncio.sleep(0.01, i) for i in range(10))))
    order = []
    async def later(d): await asyncio.sleep(d); order.append(d)
    await asyncio.gather(*(later(d) for d in (0.3, 0.1, 0.2, 0))); print(order)
    try: await asyncio.wait_for(asyncio.sleep(10), 0.05)
    except asyncio.TimeoutError: print("timeout")
    t = asyncio.create_task(asyncio.sleep(10)); await asyncio.sleep(0); t.cancel()
    try: await t
    except asyncio.CancelledError: print("cancelled")
    server = await asyncio.start_unix_server(serve, "server.sock"); print(await asyncio.gather(*(client("server.sock", i) for i in range(30)))); server.close(); await server.wait_closed(); os.unlink("server.sock")
    p = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1); print(len((await p.communicate(b"y" * 500000))[0]), p.returncode)
    ps = [await asyncio.create_subprocess_shell(f"sleep 0.0{i}; echo {i}; exit {i}", stdout=-1) for i in range(10)]; print([(await p.communicate())[0] for p in ps], [p.returncode for p in ps])
    p = await asyncio.create_subprocess_exec("sleep", "100"); p.terminate(); print(await p.wait())
    loop, got = asyncio.get_running_loop(), asyncio.Event(); loop.add_signal_handler(signal.SIGUSR1, got.set); os.kill(os.getpid(), signal.SIGUSR1); await asyncio.wait_for(got.wait(), 5); print("signal"); loop.remove_signal_handler(signal.SIGUSR1)
    print(await asyncio.gather(*(loop.run_in_executor(None, lambda n=n: sum(range(n))) for n in (10, 1000, 100000)))); print(await asyncio.to_thread(lambda: "thread"))
    q = asyncio.Queue(5)
    async def produce(): [await q.put(i) for i in range(50)]; await q.put(None)
    async def consume():
        n = 0
        while (i := await q.get()) is not None: n += i
        return n
    print((await asyncio.gather(produce(), consume()))[1]); sem, best = asyncio.Semaphore(3), []
    async def limited():
        async with sem: best.append(sem._value); await asyncio.sleep(0.005)
    await asyncio.gather(*(limited() for _ in range(12))); print(min(best)); a, b = socket.socketpair(); a.setblocking(False); b.setblocking(False)
    async def send(): await loop.sock_sendall(a, b"z" * 1000000); a.close()
    async def receive():
        n = 0
        while d := await loop.sock_recv(b, 65536): n += len(d)
        b.close(); return n
    print((await asyncio.gather(send(), receive()))[1]); r, w = os.pipe(); reader = asyncio.StreamReader(); await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(r, "rb")); os.write(w, b"pipe\n"); os.close(w); print(await reader.read())
    async with asyncio.Lock(): print("locked")
    try: await asyncio.gather(later(0), asyncio.wait_for(asyncio.Event().wait(), 0.01))
    except asyncio.TimeoutError: print("gathered timeout")

for selector in (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector):
    print("==", selector.__name__); loop = asyncio.SelectorEventLoop(selector()); asyncio.set_event_loop(loop)
    asyncio.get_child_watcher().attach_loop(loop) if sys.version_info < (3, 12) else None
    loop.run_until_complete(main()); loop.close()
