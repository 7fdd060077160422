package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes the test program the services, too: what a manager starts has a clean
// environment, so the first argument says what it is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "helper" {
		if err := helper(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

func helper(what string, args []string) error {
	switch what {
	case "serve": // a daemon with a child
		child := exec.Command(os.Args[0], "helper", "sleep")
		if err := child.Start(); err != nil {
			return err
		}
		fmt.Println("serving", args, os.Environ())
		if err := sayReady(); err != nil {
			return err
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGHUP, unix.SIGTERM)
		for s := range c {
			fmt.Println("heard", s)
			if s == unix.SIGTERM {
				return nil // its child is left behind
			}
		}
	case "fail":
		return errors.New("first line\nit cannot be done")
	case "silent":
		signal.Ignore(unix.SIGTERM)
		time.Sleep(time.Hour)
	case "sleep":
		time.Sleep(time.Hour)
	case "starter": // DIR NAME LOG
		m, err := NewSupervised(args[0])
		if err != nil {
			return err
		}
		if _, err := m.Install(context.Background(), daemon(args[1], args[2], "serve")); err != nil {
			return err
		}
		if err := m.Start(context.Background(), args[1]); err != nil {
			return err
		}
		fmt.Println("started")
		time.Sleep(time.Hour)
	case "remover": // DIR NAME
		m, err := NewSupervised(args[0])
		if err != nil {
			return err
		}
		if err := m.Remove(context.Background(), args[1]); err != nil {
			return err
		}
		fmt.Println("removed, and ends")
	case "restarter": // SOCKET
		r, err := NewRestarter(context.Background(), Runtime{Socket: args[0], SupervisorWait: time.Second})
		if err != nil {
			return err
		}
		if err := r.Restart(context.Background()); err != nil {
			return err
		}
		fmt.Println("restarted")
		time.Sleep(time.Hour)
	case "init":
		return initHelper(args)
	default:
		return fmt.Errorf("no helper is called %q", what)
	}
	return nil
}

func sayReady() error {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("STATUS=well\nREADY=1"))
	return errors.Join(err, c.Close())
}

// daemon is a helper as a service.
func daemon(name, log string, args ...string) Daemon {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Daemon{
		Name: name, Argv: append([]string{self, "helper"}, args...), LogFile: log,
		StartTimeout: 20 * time.Second, StopTimeout: 10 * time.Second,
	}
}

// names of services are those of cgroups, and cgroups are the machine's.
func testName(t *testing.T, what string) string {
	t.Helper()
	name := fmt.Sprintf("apparate-test-%d-%s", os.Getpid(), what)
	t.Cleanup(func() {
		g, err := groupOf(name)
		if err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.kill(ctx), g.remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return name
}

// manager is a supervised one with a directory of its own.
func manager(t *testing.T) (*supervised, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("cgroups are root's: run this as root")
	}
	dir := t.TempDir()
	m, err := NewSupervised(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	return m.(*supervised), filepath.Join(dir, "log")
}

// eventually waits for a condition that is sure to come.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("in vain: %s", what)
}

// nothingLeft fails where a service has left something.
func nothingLeft(t *testing.T, s *supervised, name string) {
	t.Helper()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name(), name) {
			t.Errorf("left: %s", f.Name())
		}
	}
	g, err := groupOf(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range g {
		if _, err := os.Stat(h.dir); err == nil {
			t.Errorf("left: %s", h.dir)
		}
	}
	if left := helpers(t, name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// helpers are the processes of a service, by their pids: also those that are in no
// group of it any more.
func helpers(t *testing.T, name string) map[process]string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := map[process]string{}
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "helper\x00") || !strings.Contains(string(b), name) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		if p, err := findProcess(pid); err == nil && p.alive() { // else it has ended
			found[p] = string(b)
		}
	}
	return found
}

func contents(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
