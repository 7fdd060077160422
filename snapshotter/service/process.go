package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process for good: a pid alone is given to another one some day.
type process struct {
	PID int `json:"pid"`
	// Started is when, in clock ticks since the machine started.
	Started uint64 `json:"started"`
}

// findProcess returns the process that has this pid now.
func findProcess(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	s, err := parseStat(string(b))
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return process{PID: pid, Started: s.started}, nil
}

// StartOf tells when a process was started, in clock ticks since the machine was, and by
// the clock.
func StartOf(pid int) (ticks uint64, at time.Time, err error) {
	const perSecond = 100 // USER_HZ is 100 everywhere
	p, err := findProcess(pid)
	if err != nil {
		return 0, at, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, at, err
	}
	age := time.Duration(now.Nano()) - time.Duration(p.Started)*time.Second/perSecond
	return p.Started, time.Now().Add(-age), nil
}

type stat struct {
	state   byte
	parent  int
	started uint64
}

// parseStat reads a line of /proc/PID/stat (proc(5)). The name of the program, in
// brackets, may have brackets and spaces.
func parseStat(line string) (s stat, err error) {
	i := strings.LastIndexByte(line, ')')
	if i < 0 {
		return stat{}, errors.New("no name in brackets")
	}
	f := strings.Fields(line[i+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return stat{}, fmt.Errorf("%d fields after the name, want 20 and more", len(f))
	}
	s.state = f[0][0]
	if s.parent, err = strconv.Atoi(f[1]); err != nil {
		return stat{}, fmt.Errorf("parent: %w", err)
	}
	if s.started, err = strconv.ParseUint(f[19], 10, 64); err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return s, nil
}

// alive says whether it runs: the dead that nobody has asked for do not.
func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	s, err := parseStat(string(b))
	return err == nil && s.started == p.Started && s.state != 'Z' && s.state != 'X'
}

// open returns a descriptor that stays that of this process, whoever has its pid.
func (p process) open() (fd int, err error) {
	if p.PID <= 0 {
		return -1, unix.ESRCH
	}
	fd, err = unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, err
	}
	// Now that it cannot be given away: is it the one?
	if q, err := findProcess(p.PID); err != nil || q != p {
		return -1, errors.Join(unix.ESRCH, unix.Close(fd))
	}
	return fd, nil
}

// signal sends a signal; to one that has ended it is unix.ESRCH.
func (p process) signal(s unix.Signal) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	return errors.Join(unix.PidfdSendSignal(fd, s, nil, 0), unix.Close(fd))
}

// wait waits until the process, whosever child it is, has ended.
func (p process) wait(ctx context.Context) (err error) {
	fd, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(wake)) }()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{0, 0, 0, 0, 0, 0, 0, 1}) // any number but zero
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		switch _, err := unix.Poll(fds, -1); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// setOOM says how readily the kernel ends a process when memory is short, as near to
// score as we may. Who may not is left as it is.
func setOOM(pid, score int) {
	for _, s := range []int{score, 0} {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), strconv.AppendInt(nil, int64(s), 10), 0)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}
