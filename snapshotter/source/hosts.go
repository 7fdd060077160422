package source

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// idleConnections to one host are kept: a container that starts reads from many
// places of many layers at once, and each new connection costs round trips.
const idleConnections = 32

// configure reads how host is reached, as containerd does.
func (r *Resolver) configure(host string) ([]docker.RegistryHost, error) {
	o := config.HostOptions{HostDir: r.hostDir, UpdateClient: tune}
	if slices.Contains(r.opts.PlainHTTP, host) {
		o.DefaultScheme = "http"
	}
	return config.ConfigureHosts(r.quiet(context.Background()), o)(host)
}

// hostDir returns the first directory that describes host.
func (r *Resolver) hostDir(host string) (string, error) {
	for _, root := range r.opts.HostsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if err == nil || !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

func tune(c *http.Client) error {
	if t, ok := c.Transport.(*http.Transport); ok {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, idleConnections
	}
	return nil
}

// quiet returns a context in which containerd's packages log through our logger,
// and warnings only: they have one about every loopback registry at level info.
func (r *Resolver) quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(bridge{r.opts.Logger})
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// bridge hands logrus entries to slog.
type bridge struct{ to *slog.Logger }

func (bridge) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel}
}

func (b bridge) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level == logrus.ErrorLevel {
		level = slog.LevelError
	}
	var attrs []slog.Attr
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		attrs = append(attrs, slog.Any("error", err))
	}
	b.to.LogAttrs(context.Background(), level, "registry configuration: "+e.Message, attrs...)
	return nil
}
