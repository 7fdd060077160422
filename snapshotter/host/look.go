package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/apparate/apparate/snapshotter/dropin"
	"github.com/apparate/apparate/snapshotter/service"
)

// runtime is the containerd of a machine, as it runs.
type runtime struct {
	version string
	pid     int
	started uint64 // in clock ticks since boot
	since   time.Time
	exe     string
	config  string // the main file
	facts   dropin.Facts
	// input is complete but for Root; edit is what puts the import into the
	// configuration, and try is the main file that containerd then has.
	input dropin.Input
	k3s   *dropin.K3s
}

// look finds out how containerd runs.
func (m *Machine) look(ctx context.Context) (*runtime, error) {
	var r runtime
	var err error
	if r.version, err = ContainerdVersion(ctx, m.Socket); err != nil {
		return nil, problem(ReasonPreflight, "%w: start it, or say where it listens with --containerd-socket", err)
	}
	if r.pid, err = service.SocketOwner(ctx, m.Socket); err != nil {
		return nil, fmt.Errorf("finding containerd's process: %w", err)
	}
	if r.started, r.since, err = service.StartOf(r.pid); err != nil {
		return nil, fmt.Errorf("containerd, process %d: %w", r.pid, err)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.pid))
	if err != nil {
		return nil, fmt.Errorf("containerd, process %d: %w", r.pid, err)
	}
	r.exe = strings.TrimSuffix(exe, " (deleted)")
	if r.config = m.Config; r.config == "" {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", r.pid))
		if err != nil {
			return nil, err
		}
		r.config = configOf(strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00"))
	}
	r.input = dropin.Input{MainPath: r.config, Version: r.version, Glob: glob, Socket: Socket, Name: Name}
	if r.input.Main, r.input.Imported, err = dropin.Read(r.config, r.version, glob); err != nil {
		return nil, problem(ReasonConfig, "%w", err)
	}
	if r.input.Dump, err = r.dump(ctx, r.config, r.input.Main == nil); err != nil {
		return nil, problem(ReasonConfig, "containerd would not start with its configuration as it is: %w: correct it; containerd was not restarted", err)
	}
	if r.facts, err = dropin.ReadFacts(r.input.Dump); err != nil {
		return nil, problem(ReasonConfig, "%w", err)
	}
	if err := r.lookK3s(m.Kubelet); err != nil {
		return nil, err
	}
	return &r, nil
}

// lookK3s reads the templates where k3s or rke2 writes containerd's configuration.
func (r *runtime) lookK3s(kubelet string) error {
	dir := filepath.Dir(r.config)
	if !strings.HasSuffix(dir, "/agent/etc/containerd") {
		return nil
	}
	k := &dropin.K3s{Dir: dir, Rendered: r.input.Main, Containerd: r.version, Version: kubelet, Glob: glob}
	var errs [2]error
	k.V2, errs[0] = readOptional(filepath.Join(dir, "config.toml.tmpl"))
	k.V3, errs[1] = readOptional(filepath.Join(dir, "config-v3.toml.tmpl"))
	r.k3s = k
	return errors.Join(errs[:]...)
}

// configOf finds the main file in containerd's command line.
func configOf(args []string) string {
	for i, a := range args {
		for _, flag := range []string{"--config", "-config", "-c", "--c"} {
			if v, ok := strings.CutPrefix(a, flag+"="); ok {
				return v
			}
			if a == flag && i+1 < len(args) {
				return args[i+1]
			}
		}
	}
	return "/etc/containerd/config.toml"
}

// dump is what containerd makes of a main file; missing means that there is none.
func (r *runtime) dump(ctx context.Context, main string, missing bool) ([]byte, error) {
	const limit = time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := []string{"--config", main, "config", "dump"}
	if missing {
		args = []string{"config", "default"}
	}
	cmd := exec.CommandContext(ctx, r.exe, args...)
	// Patterns of containerd before 1.7 are relative to its working directory.
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("containerd %s: %w: %s", strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return out, nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}
