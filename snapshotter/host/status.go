package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Phase is how far a machine is.
type Phase string

// Phases of a machine. In NotLazy and Broken containerd runs as it did without us, unless
// it was switched before: then lazy images that run go on.
const (
	// Installing: something is being changed.
	Installing Phase = "Installing"
	// Ready: containerd uses the snapshotter, and it mounts lazily.
	Ready Phase = "Ready"
	// NotLazy: this machine cannot mount lazily; nothing was changed.
	NotLazy Phase = "NotLazy"
	// Broken: it should work, and does not.
	Broken Phase = "Failed"
	// Retiring: new containers do not use the snapshotter any more.
	Retiring Phase = "Retiring"
)

// Status is how a machine is, for people and for the cluster. It has no secrets.
type Status struct {
	Version string `json:"version"`
	State   Phase  `json:"state"`
	// Reason is one word for machines, such as PreflightFailed; Message is one line
	// that says what is wrong and what to do. Both are empty while all is well.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// DataPath is how images are mounted; Containerd and Kernel are versions.
	DataPath   string `json:"dataPath,omitempty"`
	Containerd string `json:"containerd,omitempty"`
	Kernel     string `json:"kernel,omitempty"`
	// Root is the directory of snapshots and cache; Service manages the daemon, and
	// Restart is how containerd is restarted.
	Root    string `json:"root,omitempty"`
	Service string `json:"service,omitempty"`
	Restart string `json:"restart,omitempty"`
	// Trouble is the newest error with a registry, while it lasts.
	Trouble string `json:"trouble,omitempty"`
	// Since is when State or Reason changed.
	Since time.Time `json:"since"`
}

// Reasons of a Status.
const (
	ReasonPreflight  = "PreflightFailed"
	ReasonConfig     = "ContainerdConfigInvalid"
	ReasonPending    = "ContainerdRestartPending"
	ReasonRolledBack = "RolledBack"
	ReasonUnhealthy  = "NodeNotReady"
	ReasonDaemon     = "SnapshotterFailed"
	ReasonInternal   = "Error"
)

// Problem is an error with a reason; its text says what to do.
type Problem struct {
	Reason string
	State  Phase
	Err    error
}

// Error is the text.
func (p *Problem) Error() string { return p.Err.Error() }

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Err }

func problem(reason string, format string, args ...any) error {
	return &Problem{Reason: reason, State: Broken, Err: fmt.Errorf(format, args...)}
}

// Status is the status after the last call of another method.
func (m *Machine) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// note changes the status, and writes it for `apparate status`.
func (m *Machine) note(change func(s *Status)) {
	m.mu.Lock()
	before := m.status
	change(&m.status)
	if m.status.State != before.State || m.status.Reason != before.Reason || m.status.Since.IsZero() {
		m.status.Since = time.Now().UTC().Truncate(time.Second)
	}
	m.status.Message = oneLine(m.status.Message)
	now := m.status
	m.mu.Unlock()
	b, err := json.MarshalIndent(now, "", "  ")
	if err == nil {
		_, err = writeFile(StatusFile, append(b, '\n'), 0o644)
	}
	if err != nil {
		m.Logger.Warn("the status is not written down", "file", StatusFile, "error", err)
	}
}

// result puts the outcome of a step into the status, and returns it.
func (m *Machine) result(err error) error {
	m.note(func(s *Status) {
		var p *Problem
		switch {
		case err == nil:
			s.State, s.Reason, s.Message = Ready, "", ""
		case errors.As(err, &p):
			s.State, s.Reason, s.Message = p.State, p.Reason, err.Error()
		default:
			s.State, s.Reason, s.Message = Broken, ReasonInternal, err.Error()
		}
	})
	return err
}

func oneLine(s string) string {
	const most = 1000
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// DaemonStatus is the part of what the daemon says at its status socket that a machine
// needs.
type DaemonStatus struct {
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	DataPath string `json:"dataPath"`
	NotLazy  string `json:"notLazy"`
	Errors   []struct {
		Host    string    `json:"host"`
		Repo    string    `json:"repo"`
		Message string    `json:"message"`
		Last    time.Time `json:"last"`
	} `json:"errors"`
}

// client talks HTTP over the status socket.
func client() *http.Client {
	const limit = 10 * time.Second
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", StatusSocket)
		},
	}}
}

// requestDaemon asks the daemon at path. The caller closes the body.
func requestDaemon(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://apparate"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client().Do(req)
	if err != nil {
		return nil, fmt.Errorf("the snapshotter does not answer at %s: %w", StatusSocket, err)
	}
	return resp, nil
}

// askDaemon asks the daemon at path and copies at most 16 MiB of its answer to w.
func askDaemon(ctx context.Context, path string, w io.Writer) (err error) {
	const most = 16 << 20
	resp, err := requestDaemon(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	_, err = io.Copy(w, io.LimitReader(resp.Body, most))
	return err
}

// Metrics writes the daemon's metrics, in the text format of Prometheus.
func (m *Machine) Metrics(ctx context.Context, w io.Writer) error {
	return askDaemon(ctx, "/metrics", w)
}

// daemon asks the daemon how it is.
func (m *Machine) daemon(ctx context.Context) (st DaemonStatus, err error) {
	var b strings.Builder
	if err := askDaemon(ctx, "/status", &b); err != nil {
		return st, err
	}
	err = json.Unmarshal([]byte(b.String()), &st)
	return st, err
}

// ReadStatus reads what the last process that worked on this machine wrote down; dir is
// empty, or the root of the host for a process in a container.
func ReadStatus(dir string) (st Status, err error) {
	b, err := os.ReadFile(dir + StatusFile)
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}
