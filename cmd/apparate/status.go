package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/snapshotter/host"
)

func newStatusCommand() *cobra.Command {
	var address, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how this node's snapshotter is: data path, cache, troubles",
		Long: `Asks the snapshotter of this machine how it is: whether images are mounted lazily
and if not why, what the cache takes, and which repositories have trouble.

Where this machine was made a node by 'apparate node', it says first whether that
worked, and if not what to do. In the pod of the DaemonSet it asks the machine below.

The exit code is 0 when images are mounted lazily and 1 when they are not, or when
nobody answers.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("--output %q: use text or json", output)}
			}
			return printStatus(cmd.Context(), cmd.OutOrStdout(), statusSocket(address), output)
		},
	}
	cmd.Flags().StringVar(&address, "status-address", statusAddress, "unix socket of the snapshotter's status")
	cmd.Flags().StringVar(&output, "output", "text", "text or json")
	return cmd
}

// statusSocket is where to ask: at address or, in the pod of `apparate node`, where
// that is for somebody there.
func statusSocket(address string) string {
	if _, err := os.Stat(filepath.Dir(address)); err != nil && address == statusAddress {
		if _, err := os.Stat(filepath.Dir(podStatusAddress)); err == nil {
			return podStatusAddress
		}
	}
	return address
}

// fullStatus is the daemon's status and, where the machine was made a node by `apparate
// node`, how that stands.
type fullStatus struct {
	*daemonStatus
	Node *host.Status `json:"node,omitempty"`
}

func printStatus(ctx context.Context, w io.Writer, address, output string) error {
	var full fullStatus
	st, err := askStatus(ctx, address)
	if err == nil {
		full.daemonStatus = &st
	}
	if address == statusAddress || address == podStatusAddress {
		root := strings.TrimSuffix(address, statusAddress)
		if n, err := host.ReadStatus(root); err == nil {
			full.Node = &n
		}
	}
	if err != nil && full.Node == nil {
		return err
	}
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if eerr := e.Encode(full); eerr != nil {
			return eerr
		}
	} else if perr := full.print(w); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return err
	case st.NotLazy != "" || full.Node != nil && full.Node.State != host.Ready:
		return reported{errors.New("images are not mounted lazily")}
	}
	return nil
}

// podStatusAddress is where the status is for somebody in the pod of `apparate node`.
const podStatusAddress = "/proc/1/root" + statusAddress

// print writes a status for people, what is wrong first.
func (s *fullStatus) print(w io.Writer) error {
	if n := s.Node; n != nil {
		line := string(n.State)
		if n.Message != "" {
			line += ": " + n.Message
		}
		if _, err := fmt.Fprintf(w, "node      %s (since %s)\n", line, n.Since.Format(time.DateTime)); err != nil {
			return err
		}
	}
	if s.daemonStatus == nil {
		return nil
	}
	return s.daemonStatus.print(w)
}

// askStatus asks the daemon behind a status socket how it is.
func askStatus(ctx context.Context, address string) (daemonStatus, error) {
	raw, err := askDaemon(ctx, address, "/status", 1<<20)
	if err != nil {
		return daemonStatus{}, err
	}
	var st daemonStatus
	if err := json.Unmarshal(raw, &st); err != nil {
		return daemonStatus{}, fmt.Errorf("reading the status of the snapshotter at %s: %w", address, err)
	}
	return st, nil
}

// errNotServed is that the daemon knows of no such path.
var errNotServed = errors.New("it does not serve that")

// askDaemon asks the daemon behind a status socket for what it serves at path, at
// most that many bytes.
func askDaemon(ctx context.Context, address, path string, most int64) ([]byte, error) {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://apparate"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no snapshotter answers at %s: is it running here, and with this --status-address?", address)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("only root may ask at %s", address)
	case err != nil:
		return nil, fmt.Errorf("asking the snapshotter at %s: %w", address, err)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, most))
	err = errors.Join(err, resp.Body.Close())
	switch {
	case resp.StatusCode == http.StatusNotFound:
		err = errNotServed
	case err == nil && resp.StatusCode != http.StatusOK:
		err = fmt.Errorf("it answered %s", resp.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the snapshotter at %s for %s: %w", address, path, err)
	}
	return raw, nil
}

// print writes a status for people.
func (s *daemonStatus) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { _, _ = fmt.Fprintf(t, name+"\t"+format+"\n", args...) } // Flush tells
	if s.NotLazy == "" {
		line("lazy", "yes, by %s", s.DataPath)
	} else {
		line("lazy", "no: %s", s.NotLazy)
	}
	line("version", "%s, pid %d, up %v", s.Version, s.PID, time.Since(s.Since).Round(time.Second))
	line("images", "%d mounted, %d layers; %d need no daemon for new containers", s.Images, s.Layers, s.Local)
	line("cache", "%.1f MB in %s", float64(s.CacheBytes)/1e6, s.Root)
	line("fetched", "%.1f MB", float64(s.FetchedBytes)/1e6)
	for _, e := range s.Errors {
		name := e.Repo
		if e.Host != "" {
			name = e.Host + "/" + e.Repo
		}
		line("trouble", "%s: %s (%d times since %s)", name, e.Message, e.Count, e.Since.Format(time.DateTime))
	}
	return t.Flush()
}
