package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	runDir = "/run/service"
	logDir = "/var/log"
	again  = 200 * time.Millisecond // from an end to the next start
	await  = 20 * time.Second
)

// Environment is that of all programs of a node: nothing of the machine's.
func Environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
}

// service is the state of one.
type service struct {
	Service
	pid   int // 0 while it does not run
	next  time.Time
	until time.Time // when waiting for Await ends
}

// serve starts the services, restarts them, and reaps what is left to this process,
// for ever.
func serve(all []Service) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	tick := time.NewTicker(again / 4)
	services := make([]*service, len(all))
	for i, s := range all {
		services[i] = &service{Service: s, until: time.Now().Add(await)}
	}
	for {
		for _, s := range services {
			if s.due() {
				s.start()
			}
		}
		select {
		case <-ended:
		case <-tick.C:
		}
		if err := reap(services); err != nil {
			return err
		}
	}
}

// due says whether the service has to be started now.
func (s *service) due() bool {
	now := time.Now()
	if s.pid != 0 || now.Before(s.next) || exists(filepath.Join(runDir, s.Name+".down")) {
		return false
	}
	if s.Await != "" && now.Before(s.until) && !exists(s.Await) {
		return false
	}
	s.Await = ""
	return true
}

// start starts the service. What stands in its way is said in its log; the next try
// follows.
func (s *service) start() {
	s.next = time.Now().Add(again)
	log, err := os.OpenFile(filepath.Join(logDir, s.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Println("boot:", err)
		return
	}
	defer func() { _ = log.Close() }() // the service has it
	null, err := os.Open(os.DevNull)
	if err != nil {
		fmt.Println("boot:", err)
		return
	}
	defer func() { _ = null.Close() }() // the service has it
	// ForkExec, not os/exec: it is reaped below, with everything else.
	pid, err := syscall.ForkExec(s.Args[0], s.Args, &syscall.ProcAttr{
		Dir: "/", Env: Environment(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_, _ = fmt.Fprintf(log, "boot: starting %s: %v\n", s.Args[0], err)
		return
	}
	s.pid = pid
	if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(pid)+"\n"), 0o644); err != nil {
		_, _ = fmt.Fprintf(log, "boot: %v\n", err)
	}
}

func (s *service) pidFile() string { return filepath.Join(runDir, s.Name+".pid") }

// reap takes the status of every process that has ended.
func reap(services []*service) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("waiting for processes: %w", err)
		}
		for _, s := range services {
			if s.pid != pid {
				continue
			}
			fmt.Printf("boot: %s ended with status %#x\n", s.Name, uint32(status))
			s.pid, s.next = 0, time.Now().Add(again)
			_ = os.Remove(s.pidFile()) // there at most
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
