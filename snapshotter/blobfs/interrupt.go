package blobfs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killPoll is how often an interrupted reader is looked at. The kernel sends one
// interrupt for a request, so a kill that follows a harmless signal is only found
// by looking.
const killPoll = 50 * time.Millisecond

// interruptible returns a context for one request. It ends when parent does, and
// when the request was interrupted and nobody needs it any more. done must be
// called when the request is answered.
func interruptible(parent context.Context, interrupt <-chan struct{}, unneeded func() bool) (ctx context.Context, done context.CancelFunc) {
	ctx, done = context.WithCancel(parent)
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-interrupt:
		}
		t := time.NewTicker(killPoll)
		defer t.Stop()
		for !unneeded() {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
		done()
	}()
	return ctx, done
}

// dying reports whether a thread has a SIGKILL pending: any fatal signal puts one
// on every thread of the process (kernel/signal.c, complete_signal). tid 0 is a
// thread of a foreign PID namespace or of the kernel; it is taken for alive, since
// giving up wrongly costs a program its data, and waiting costs a zombie a while.
func dying(tid uint32) bool {
	if tid == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return os.IsNotExist(err)
	}
	return killPending(b)
}

// killPending looks for SIGKILL in the masks of proc_pid_status(5).
func killPending(status []byte) bool {
	sc := bufio.NewScanner(bytes.NewReader(status))
	for sc.Scan() {
		key, value, _ := bytes.Cut(sc.Bytes(), []byte(":"))
		if string(key) != "SigPnd" && string(key) != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
