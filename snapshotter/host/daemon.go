package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/apparate/apparate/snapshotter/service"
)

// unit is the daemon as a service of the host.
func (m *Machine) unit(root string) service.Daemon {
	return service.Daemon{
		Name: Name, Description: "Apparate: container images that start before they are downloaded",
		Argv: []string{m.Program(), "snapshotter", "--config", m.path("snapshotter.json")},
		// Kubelet's plugins and docker's configuration look there.
		Env:       []string{"HOME=/root"},
		Before:    []string{"containerd.service", "k3s.service", "k3s-agent.service", "rke2-server.service", "rke2-agent.service"},
		Mounts:    []string{root},
		PostStart: []string{m.Program(), "node", "boot", "--host-dir", m.Dir},
		// FUSE connection, socket and lock.
		Descriptors: 3,
		LogFile:     m.path("apparate.log"),
	}
}

// options are those of `apparate snapshotter`, as a file.
func (m *Machine) options(root string, hosts []string) ([]byte, error) {
	o := map[string][]string{
		"root": {root}, "address": {Socket}, "status-address": {StatusSocket}, "credentials-dir": {m.CredentialsDir()},
	}
	if len(hosts) > 0 {
		o["hosts-dir"] = hosts
	}
	// Where kubelet looks first for docker's configuration.
	if _, err := os.Stat("/var/lib/kubelet/config.json"); err == nil {
		o["docker-config"] = []string{"/var/lib/kubelet"}
	}
	for name, values := range m.Daemon {
		o[name] = values
	}
	return json.MarshalIndent(o, "", "  ")
}

// ensureDaemon installs the daemon as it should be and sees to it that it runs that
// way. A daemon that runs is replaced without its containers noticing; where the new
// one does not work, the old one is put back.
func (m *Machine) ensureDaemon(ctx context.Context, s *state, hosts []string) error {
	options, err := m.options(s.Root, hosts)
	if err != nil {
		return err
	}
	if m.binary == "" {
		if m.binary, err = digest(m.Binary); err != nil {
			return err
		}
	}
	for _, dir := range []string{m.CredentialsDir(), filepath.Dir(m.Program())} {
		mode := fs.FileMode(0o755)
		if dir == m.CredentialsDir() {
			mode = 0o700
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	want := sum([]byte(m.binary), options)
	before, err := m.manager.Status(ctx, Name)
	if err != nil {
		return err
	}
	if !before.Running || s.Daemon != want {
		if err := m.installDaemon(ctx, s, options, before.Running); err != nil {
			return err
		}
		s.Daemon = want
		if err := m.save(*s); err != nil {
			return err
		}
	}
	st, err := m.daemon(ctx)
	if err != nil {
		return problem(ReasonDaemon, "%w", err)
	}
	m.note(func(n *Status) {
		n.DataPath, n.Root, n.Service, n.Trouble = st.DataPath, s.Root, m.manager.Name(), st.trouble()
	})
	if st.NotLazy != "" {
		return &Problem{Reason: ReasonPreflight, State: NotLazy, Err: fmt.Errorf("images cannot be mounted lazily: %s", st.NotLazy)}
	}
	return nil
}

// installDaemon writes the daemon's files and starts or replaces it.
func (m *Machine) installDaemon(ctx context.Context, s *state, options []byte, running bool) error {
	file := m.path("snapshotter.json")
	oldOptions, err := readOptional(file)
	if err != nil {
		return err
	}
	old := m.Program() + ".old"
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(m.Program(), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := CopyProgram(m.Binary, m.Program()); err != nil {
		return err
	}
	if _, err := writeFile(file, options, 0o600); err != nil {
		return err
	}
	if _, err := m.manager.Install(ctx, m.unit(s.Root)); err != nil {
		return problem(ReasonDaemon, "installing the snapshotter as a service: %w", err)
	}
	if !running {
		m.Logger.Info("starting the snapshotter", "program", m.Program(), "manager", m.manager.Name(), "root", s.Root)
		if err := m.manager.Start(ctx, Name); err != nil {
			return problem(ReasonDaemon, "the snapshotter does not start: %w", err)
		}
	} else if err := m.replaceDaemon(ctx); err != nil {
		m.Logger.Error("the new snapshotter does not work: going back to the old one", "error", err)
		back := os.Rename(old, m.Program())
		if _, werr := writeFile(file, oldOptions, 0o600); werr != nil {
			back = errors.Join(back, werr)
		}
		return problem(ReasonDaemon, "the new snapshotter does not work, the old one goes on: %w",
			errors.Join(err, back, m.replaceDaemon(ctx)))
	}
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// replaceDaemon makes the running daemon hand over to the installed one.
func (m *Machine) replaceDaemon(ctx context.Context) error {
	const limit, poll = time.Minute, 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	before, _ := m.daemon(ctx) // one that does not answer has no process
	m.Logger.Info("replacing the snapshotter", "pid", before.PID)
	st, err := m.manager.Status(ctx, Name)
	if err != nil {
		return err
	}
	if st.Outdated && m.manager.KeepsDescriptors() {
		err = m.manager.Restart(ctx, Name)
	} else {
		err = m.manager.Reload(ctx, Name)
	}
	if err != nil {
		return err
	}
	for {
		now, err := m.daemon(ctx)
		if err == nil && now.PID != before.PID {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no new snapshotter within %v: %w", limit, errors.Join(err, ctx.Err()))
		case <-time.After(poll):
		}
	}
}

// trouble is the newest error with a registry of the last minutes.
func (d *DaemonStatus) trouble() string {
	const recent = 10 * time.Minute
	for _, e := range d.Errors {
		if time.Since(e.Last) < recent {
			name := e.Repo
			if e.Host != "" {
				name = e.Host + "/" + e.Repo
			}
			return oneLine(name + ": " + e.Message)
		}
	}
	return ""
}

// Refresh puts what the daemon says now into the status; a daemon that does not answer
// is looked at by Install.
func (m *Machine) Refresh(ctx context.Context) {
	st, err := m.daemon(ctx)
	if err != nil {
		return
	}
	m.note(func(n *Status) {
		if n.State == Ready && st.NotLazy != "" {
			n.State, n.Reason, n.Message = NotLazy, ReasonPreflight, "images cannot be mounted lazily: "+st.NotLazy
		}
		n.DataPath, n.Trouble = st.DataPath, st.trouble()
	})
}
