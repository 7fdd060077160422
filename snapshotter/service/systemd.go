package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// booted is there where systemd is process 1 (sd_booted(3)).
const booted = "/run/systemd/system"

// Detect returns the manager of the services of this host.
func Detect(ctx context.Context) (Manager, error) {
	if isBooted() {
		s, err := newSystemd(ctx)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return NewSupervised("")
}

// systemd manages units over D-Bus.
type systemd struct {
	version int
	// runtime is true where /etc cannot be written: then units last until the next boot.
	runtime bool
}

var _ Manager = (*systemd)(nil)

func newSystemd(ctx context.Context) (*systemd, error) {
	s := &systemd{runtime: errors.Is(unix.Access("/etc/systemd/system", unix.W_OK), unix.EROFS)}
	return s, s.do(ctx, func(c *dbus.Conn) error {
		v, err := c.GetManagerProperty("Version")
		if err != nil {
			return fmt.Errorf("asking systemd for its version: %w", err)
		}
		s.version, err = systemdVersion(v)
		return err
	})
}

// systemdVersion reads "252.38-1~deb12u1", "v255" and the like, also in quotes.
func systemdVersion(v string) (int, error) {
	digits := strings.TrimLeft(v, `"v`)
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("systemd has a strange version: %q", v)
	}
	return n, nil
}

// do connects to systemd for as long as f takes. Not for longer: connections do not
// outlive a restart of the bus.
func (*systemd) do(ctx context.Context, f func(c *dbus.Conn) error) error {
	// Directly, so that no bus has to run; where that is not allowed, over the bus.
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		c, err = dbus.NewSystemConnectionContext(ctx)
	}
	if err != nil {
		return fmt.Errorf("systemd is process 1, but does not answer on /run/systemd/private, nor over the system bus: %w", err)
	}
	defer c.Close()
	return f(c)
}

// Name is that of the manager.
func (*systemd) Name() string { return "systemd" }

// KeepsDescriptors is true: every systemd that runs today has the store.
func (*systemd) KeepsDescriptors() bool { return true }

func unitName(name string) string { return name + ".service" }

func (s *systemd) dir() string {
	if s.runtime {
		return booted
	}
	return "/etc/systemd/system"
}

func (s *systemd) path(name string) string { return filepath.Join(s.dir(), unitName(name)) }

// Install writes the unit and enables it.
func (s *systemd) Install(ctx context.Context, d Daemon) (changed bool, err error) {
	if err := d.check(); err != nil {
		return false, err
	}
	text := []byte(unitFile(d, s.version, killProgram()))
	old, err := os.ReadFile(s.path(d.Name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if changed = string(old) != string(text); changed {
		if err := WriteFile(s.path(d.Name), text, 0o644); err != nil {
			return false, fmt.Errorf("writing the unit of %s: %w", d.Name, err)
		}
	}
	err = s.do(ctx, func(c *dbus.Conn) error {
		// Not only when it was changed just now: we may have been killed in between.
		need, err := c.GetUnitPropertyContext(ctx, unitName(d.Name), "NeedDaemonReload")
		if changed || err != nil || need.Value.Value() == true {
			if err := c.ReloadContext(ctx); err != nil {
				return fmt.Errorf("systemd: daemon-reload: %w", err)
			}
		}
		_, links, err := c.EnableUnitFilesContext(ctx, []string{unitName(d.Name)}, s.runtime, true)
		if err != nil {
			return fmt.Errorf("systemd: enabling %s: %w", unitName(d.Name), err)
		}
		if len(links) == 0 {
			return nil
		}
		changed = true
		return c.ReloadContext(ctx)
	})
	return changed, err
}

// killProgram is where kill is on this host.
func killProgram() string {
	for _, p := range []string{"/bin/kill", "/usr/bin/kill"} {
		if unix.Access(p, unix.X_OK) == nil {
			return p
		}
	}
	return ""
}

// request is a method of a connection that makes a job.
type request func(c *dbus.Conn, ctx context.Context, name, mode string, ch chan<- string) (int, error)

var (
	startUnit   request = (*dbus.Conn).StartUnitContext
	stopUnit    request = (*dbus.Conn).StopUnitContext
	restartUnit request = (*dbus.Conn).RestartUnitContext
	// restartFresh is not refused because of the failures before.
	restartFresh request = func(c *dbus.Conn, ctx context.Context, name, mode string, ch chan<- string) (int, error) {
		_ = c.ResetFailedUnitContext(ctx, name) // one without failures is an error
		return c.RestartUnitContext(ctx, name, mode, ch)
	}
)

// job makes a job and waits until it is done.
func (s *systemd) job(ctx context.Context, what, unit string, r request) error {
	begin := time.Now()
	return s.do(ctx, func(c *dbus.Conn) error {
		done := make(chan string, 1)
		_, err := r(c, ctx, unit, "replace", done)
		if noSuchUnit(err) {
			return fmt.Errorf("%s: %w", unit, ErrNotInstalled)
		}
		if err != nil {
			return fmt.Errorf("systemd: %s %s: %w", what, unit, err)
		}
		select {
		case result := <-done:
			if result == "done" {
				return nil
			}
			return fmt.Errorf("systemd: %s %s: %s%s", what, unit, result, s.why(ctx, c, unit, begin))
		case <-ctx.Done():
			return fmt.Errorf("systemd: %s %s: %w", what, unit, context.Cause(ctx))
		}
	})
}

// noSuchUnit tells the errors for a unit that there is not.
func noSuchUnit(err error) bool {
	var e godbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.systemd1.NoSuchUnit" || e.Name == "org.freedesktop.systemd1.LoadFailed")
}

// why says how a unit's process ended, and what its journal says last.
func (s *systemd) why(ctx context.Context, c *dbus.Conn, unit string, since time.Time) string {
	var text string
	if p, err := c.GetUnitTypePropertiesContext(ctx, unit, "Service"); err == nil {
		if e := lastExit(p); e != "" {
			text = ": " + e
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The journal is behind what was written to it.
	_ = exec.CommandContext(ctx, hostProgram("journalctl"), "--sync").Run()
	out, err := exec.CommandContext(ctx, hostProgram("journalctl"), "--no-pager", "--quiet", "--output=cat", "--lines=20",
		fmt.Sprintf("--since=@%d.%06d", since.Unix(), since.Nanosecond()/1000), "_SYSTEMD_UNIT="+unit).Output()
	if line := lastLine(out); err == nil && line != "" {
		text += ": " + line
	}
	return text + "; see journalctl -u " + unit
}

// lastExit says how the main process ended, if it has.
func lastExit(properties map[string]any) string {
	code, _ := properties["ExecMainCode"].(int32)
	status, _ := properties["ExecMainStatus"].(int32)
	switch code {
	case 1: // CLD_EXITED
		return fmt.Sprintf("exit status %d", status)
	case 2, 3: // CLD_KILLED, CLD_DUMPED
		return "signal: " + unix.Signal(status).String()
	default:
		return ""
	}
}

// Start starts the unit.
func (s *systemd) Start(ctx context.Context, name string) error {
	return s.job(ctx, "start of", unitName(name), startUnit)
}

// Restart restarts the unit, which keeps its descriptors.
func (s *systemd) Restart(ctx context.Context, name string) error {
	return s.job(ctx, "restart of", unitName(name), restartUnit)
}

// Stop stops the unit.
func (s *systemd) Stop(ctx context.Context, name string) error {
	err := s.job(ctx, "stop of", unitName(name), stopUnit)
	if errors.Is(err, ErrNotInstalled) {
		return nil
	}
	return err
}

// Keep waits: systemd starts the unit again by itself.
func (s *systemd) Keep(ctx context.Context, _ string) error {
	<-ctx.Done()
	return nil
}

// Reload sends SIGHUP to the main process.
func (s *systemd) Reload(ctx context.Context, name string) error {
	return s.do(ctx, func(c *dbus.Conn) error {
		err := c.KillUnitWithTarget(ctx, unitName(name), dbus.Main, int32(unix.SIGHUP))
		if noSuchUnit(err) {
			return fmt.Errorf("%s: %w", unitName(name), ErrNotInstalled)
		}
		if err != nil {
			return fmt.Errorf("systemd: SIGHUP to %s: %w", unitName(name), err)
		}
		return nil
	})
}

// Remove stops the unit and removes it.
func (s *systemd) Remove(ctx context.Context, name string) error {
	st, err := s.Status(ctx, name)
	if err != nil {
		return err
	}
	if st.PID != os.Getpid() {
		if err := s.Stop(ctx, name); err != nil {
			return err
		}
	}
	return s.do(ctx, func(c *dbus.Conn) error {
		for _, runtime := range []bool{false, true} {
			if _, err := c.DisableUnitFilesContext(ctx, []string{unitName(name)}, runtime); err != nil && !noSuchUnit(err) {
				return fmt.Errorf("systemd: disabling %s: %w", unitName(name), err)
			}
		}
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := c.ReloadContext(ctx); err != nil {
			return fmt.Errorf("systemd: daemon-reload: %w", err)
		}
		// A failure that is remembered keeps the name alive; without one it is an error.
		if err := c.ResetFailedUnitContext(ctx, unitName(name)); err != nil && !noSuchUnit(err) {
			return fmt.Errorf("systemd: forgetting the failures of %s: %w", unitName(name), err)
		}
		return nil
	})
}

// Status asks for the unit's properties.
func (s *systemd) Status(ctx context.Context, name string) (st Status, err error) {
	err = s.do(ctx, func(c *dbus.Conn) error {
		p, err := c.GetAllPropertiesContext(ctx, unitName(name))
		if err != nil {
			return fmt.Errorf("systemd: properties of %s: %w", unitName(name), err)
		}
		st = unitStatus(p)
		return nil
	})
	if err != nil || !st.Running {
		return st, err
	}
	fi, err := os.Stat(s.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist): // transient, or being removed
		return st, nil
	case err != nil:
		return st, err
	}
	st.Outdated = fi.ModTime().After(st.Since)
	return st, nil
}

// unitStatus makes a status of the properties of a unit.
func unitStatus(p map[string]any) Status {
	text := func(key string) string { s, _ := p[key].(string); return s }
	var st Status
	st.Installed = text("LoadState") == "loaded"
	pid, _ := p["MainPID"].(uint32)
	st.PID, st.Running = int(pid), pid != 0
	st.Ready = text("ActiveState") == "active" || text("ActiveState") == "reloading"
	if since, _ := p["ExecMainStartTimestamp"].(uint64); st.Running && since != 0 {
		st.Since = time.UnixMicro(int64(since))
	}
	if !st.Running {
		st.LastExit = lastExit(p)
	}
	return st
}

// RunDetached starts a transient unit, which goes by itself when the program ends.
func (s *systemd) RunDetached(ctx context.Context, d Daemon) error {
	if err := d.check(); err != nil {
		return err
	}
	st, err := s.Status(ctx, d.Name)
	if err != nil || st.Running {
		return err
	}
	return s.job(ctx, "start of", unitName(d.Name), func(c *dbus.Conn, ctx context.Context, unit, mode string, ch chan<- string) (int, error) {
		// One that failed before keeps the name.
		if err := c.ResetFailedUnitContext(ctx, unit); err != nil && !noSuchUnit(err) {
			return 0, err
		}
		p := []dbus.Property{
			dbus.PropDescription(oneLine(orText(d.Description, d.Name))),
			dbus.PropExecStart(append([]string{d.Argv[0]}, dollars(d.Argv[1:])...), true),
			{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
			{Name: "TimeoutStopUSec", Value: godbus.MakeVariant(uint64(orDefault(d.StopTimeout).Microseconds()))},
		}
		if len(d.Env) > 0 {
			p = append(p, dbus.Property{Name: "Environment", Value: godbus.MakeVariant(d.Env)})
		}
		return c.StartTransientUnitContext(ctx, unit, mode, p, ch)
	})
}

// dollars escapes what would be variables of a command.
func dollars(args []string) []string {
	escaped := make([]string, len(args))
	for i, a := range args {
		escaped[i] = strings.ReplaceAll(a, "$", "$$")
	}
	return escaped
}
