// Threads, a contended lock, signals, spawned programs, pipes, a crash: each line tells what came of it.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int counter;
static volatile int signals;

static void *count(void *arg) {
    for (int i = 0; i < 1000; i++) {
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
        if (i % 100 == 0)
            (void)lseek(0, 0, SEEK_CUR);
    }
    return arg;
}

static void on_signal(int signal) {
    (void)signal;
    signals++;
}

int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, count, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    printf("counter %d\n", counter);

    signal(SIGUSR1, on_signal);
    for (int i = 0; i < 50; i++)
        raise(SIGUSR1);
    printf("signals %d\n", signals);

    // Often enough that the site is worth patching.
    struct stat st;
    int found = 0, lost = 0;
    for (int i = 0; i < 3000; i++) {
        found += stat("/etc/passwd", &st) == 0;
        lost += stat("/etc/no such file", &st) != 0;
    }
    printf("found %d lost %d\n", found, lost);

    int failed = 0;
    for (int i = 0; i < 20; i++) {
        pid_t pid;
        int status;
        char *args[] = {"true", NULL};
        failed += posix_spawn(&pid, "/bin/true", NULL, NULL, args, environ) != 0;
        failed += waitpid(pid, &status, 0) != pid || status != 0;
    }
    printf("failed %d\n", failed);

    char line[64] = "";
    FILE *pipe = popen("echo from the pipe; exit 3", "r");
    (void)!fgets(line, sizeof line, pipe);
    printf("%s", line);
    printf("status %d\n", WEXITSTATUS(pclose(pipe)));
    fflush(stdout);

    int status;
    pid_t pid = fork();
    if (pid == 0)
        abort();
    waitpid(pid, &status, 0);
    printf("signal %d\n", WTERMSIG(status));

    struct timespec ms = {0, 1000000};
    for (int i = 0; i < 10; i++)
        nanosleep(&ms, NULL);
    return 5;
}
