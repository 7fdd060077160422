package service

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// isBooted says whether systemd is process 1.
func isBooted() bool {
	fi, err := os.Stat(booted)
	return err == nil && fi.IsDir()
}

// runtimeUnit is the unit that starts the runtime, empty where there is none: that of
// the process, or without a process one with the name of a runtime.
func runtimeUnit(ctx context.Context, socket string, pid int) (unit string, err error) {
	return unit, new(systemd).do(ctx, func(c *dbus.Conn) error {
		if pid != 0 {
			unit, err = unitOf(ctx, c, pid)
			return err
		}
		for _, s := range services(socket) {
			p, err := c.GetUnitPropertyContext(ctx, unitName(s), "LoadState")
			if err != nil {
				return fmt.Errorf("systemd: looking for %s: %w", unitName(s), err)
			}
			if p.Value.Value() == "loaded" {
				unit = unitName(s)
				return nil
			}
		}
		return nil
	})
}

// unitOf is the service whose main process is the process or started it. One that it
// only happens to be in, such as that of the daemon over which somebody logged in, is
// none that restarts it.
func unitOf(ctx context.Context, c *dbus.Conn, pid int) (string, error) {
	unit, err := c.GetUnitNameByPID(ctx, uint32(pid))
	if err != nil || !strings.HasSuffix(unit, ".service") {
		return "", nil // a process of no unit is an error
	}
	p, err := c.GetServicePropertyContext(ctx, unit, "MainPID")
	if err != nil {
		return "", fmt.Errorf("systemd: the main process of %s: %w", unit, err)
	}
	main, _ := p.Value.Value().(uint32)
	if main == 0 || !descends(pid, int(main)) {
		return "", nil
	}
	return unit, nil
}

// descends says whether pid is the process from, or a child of it, of whatever degree.
func descends(pid, from int) bool {
	for pid > 1 {
		if pid == from {
			return true
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		s, err := parseStat(string(b))
		if err != nil {
			return false
		}
		pid = s.parent
	}
	return false
}
