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
	if args[0] == "init" {
		return boot()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if args[0] == "runtime" {
		return restart(ctx, args[1:])
	}
	if args[0] == "clear" {
		return mount.Clear(args[1], slog.Default())
	}
	m, err := service.Detect(ctx)
	if err != nil {
		return err
	}
	switch args[0] {
	case "manager":
		return print(map[string]any{"name": m.Name(), "keeps": m.KeepsDescriptors()})
	case "install", "detach":
		var d service.Daemon
		if err := json.Unmarshal([]byte(args[1]), &d); err != nil {
			return err
		}
		if args[0] == "detach" {
			return m.RunDetached(ctx, d)
		}
		changed, err := m.Install(ctx, d)
		return errors.Join(err, print(changed))
	case "status":
		st, err := m.Status(ctx, args[1])
		return errors.Join(err, print(st))
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
	case "sleep":
		time.Sleep(time.Hour)
		return nil
	case "fail":
		return errors.New("first line\nit cannot be done")
	default:
		return fmt.Errorf("inside: no command is called %q", args[0])
	}
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
	return errors.Join(err, print(r.How()))
}

func print(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
