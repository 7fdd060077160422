// Command inside is the first process of a machine of package systemd, until it makes
// itself systemd, and calls package service there for the tests. What it returns is
// printed as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/snapshotter/service"
)

// The main function runs on the process's first thread, whose namespaces are those of
// whoever enters the machine.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: inside COMMAND [ARGUMENT ...]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if f := programs()[args[0]]; f != nil {
		return f(ctx, args[1:])
	}
	m, err := service.Detect(ctx)
	if err != nil {
		return err
	}
	switch args[0] {
	case "manager":
		return say(map[string]any{"name": m.Name(), "keeps": m.KeepsDescriptors()})
	case "install", "detach":
		var d service.Daemon
		if err := json.Unmarshal([]byte(args[1]), &d); err != nil {
			return err
		}
		if args[0] == "detach" {
			return m.RunDetached(ctx, d)
		}
		changed, err := m.Install(ctx, d)
		return errors.Join(err, say(changed))
	case "status":
		st, err := m.Status(ctx, args[1])
		return errors.Join(err, say(st))
	case "start":
		return m.Start(ctx, args[1])
	case "stop":
		return m.Stop(ctx, args[1])
	case "restart":
		return m.Restart(ctx, args[1])
	case "reload":
		return m.Reload(ctx, args[1])
	case "remove":
		return m.Remove(ctx, args[1])
	case "remover":
		err := m.Remove(ctx, args[1])
		text := ""
		if err != nil {
			text = err.Error()
		}
		return os.WriteFile(args[2], []byte(text), 0o600)
	default:
		return fmt.Errorf("inside: no command is called %q", args[0])
	}
}

// programs are the commands that need no manager.
func programs() map[string]func(ctx context.Context, args []string) error {
	return map[string]func(context.Context, []string) error{
		"init":    func(context.Context, []string) error { return boot() },
		"runtime": restart,
		"clear":   func(_ context.Context, args []string) error { return mount.Clear(args[0], slog.Default()) },
		"show":    show,
		"fail":    func(context.Context, []string) error { return errors.New("first line\nit cannot be done") },
		"sleep": func(context.Context, []string) error {
			time.Sleep(time.Hour)
			return nil
		},
	}
}

// show is a daemon that writes how it was started to the file args[0].
func show(_ context.Context, args []string) error {
	b, err := json.Marshal(map[string][]string{"Args": os.Args, "Env": os.Environ()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], b, 0o600); err != nil {
		return err
	}
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		c, err := net.Dial("unixgram", path)
		if err != nil {
			return err
		}
		if _, err := c.Write([]byte("READY=1")); err != nil {
			return err
		}
	}
	time.Sleep(time.Hour)
	return nil
}

// restart restarts the runtime that listens on the socket args[0], unless args[1] is
// "how", and prints how.
func restart(ctx context.Context, args []string) error {
	r, err := service.NewRestarter(ctx, service.Runtime{Socket: args[0], Wait: 30 * time.Second, SupervisorWait: time.Second})
	if err != nil {
		return err
	}
	if len(args) < 2 || args[1] != "how" {
		err = r.Restart(ctx)
	}
	return errors.Join(err, say(r.How()))
}

func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
