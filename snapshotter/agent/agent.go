// Package agent is the process of the DaemonSet on a node: it makes the machine a node
// with lazy images, tells the cluster how it is, and on its end finds out whether the
// machine is to stay one.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// What the agent writes to its Node.
const (
	// Annotation has the machine's status, a host.Status as JSON.
	Annotation = "apparate.cloud.tencent.com/node"
	// Condition is True while lazy images work.
	Condition = "ApparateReady"
	// Taint may be put on new nodes, by whatever makes them. It is taken off when lazy
	// images work, or when it is known that they will not.
	Taint = "apparate.cloud.tencent.com/not-ready"
)

// Options of an Agent.
type Options struct {
	// Node is the name of the Node, DaemonSet the namespace/name of our own.
	Node, DaemonSet string
	API             *kubeapi.Client
	// Credentials is a directory with files of registry credentials, in the format of
	// docker's config.json, that are given to the daemon; empty: none.
	Credentials string
	// PodCredentials, if set, runs for as long as the agent and writes pods.json into
	// the directory that it is given.
	PodCredentials func(ctx context.Context, dir string) error
	// Samples says where the samples of starts go.
	Samples SampleOptions
	// StartupTaint says whether Taint is taken off.
	StartupTaint bool
	// Listen is the host:port of /readyz, /healthz and /metrics.
	Listen string
	// Interval is how often everything is looked at again; 0 is a minute.
	Interval time.Duration
	Logger   *slog.Logger
}

// Agent runs on one node.
type Agent struct {
	Options
	machine *host.Machine

	mu       sync.Mutex
	told     host.Status // what the Node says
	events   map[string]time.Time
	tainted  bool // there may be a taint of ours
	reported bool
}

// New returns an agent; see Run.
func New(o Options) (*Agent, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Interval <= 0 {
		o.Interval = time.Minute
	}
	if ns, name, ok := strings.Cut(o.DaemonSet, "/"); !ok || ns == "" || name == "" {
		return nil, fmt.Errorf("--daemonset %q: write namespace/name", o.DaemonSet)
	}
	if o.Node == "" {
		return nil, errors.New("--node-name is empty: give it spec.nodeName by the downward API")
	}
	if err := o.Samples.check(); err != nil {
		return nil, err
	}
	return &Agent{Options: o, events: map[string]time.Time{}, tainted: o.StartupTaint}, nil
}

// Run looks after the machine until ctx ends. Then, unless the DaemonSet still wants a
// pod on this node, the machine begins to be what it was before.
func (a *Agent) Run(ctx context.Context, m *host.Machine) error {
	a.machine = m
	stop, err := a.serve()
	if err != nil {
		return err
	}
	defer stop()
	var running sync.WaitGroup
	start := func(what string, f func(ctx context.Context) error) {
		running.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				a.Logger.Error(what, "error", err)
			}
		})
	}
	start("keeping the snapshotter running", m.Keep)
	start("handing over credentials", a.handOver)
	if a.PodCredentials != nil {
		start("credentials of pods", func(ctx context.Context) error { return a.PodCredentials(ctx, m.CredentialsDir()) })
	}
	if a.Samples.Service != "" {
		start("handing over samples of starts", a.carry)
	}
	a.loop(ctx)
	running.Wait()
	return a.leave()
}

// loop installs, again and again, and reports.
func (a *Agent) loop(ctx context.Context) {
	const soon, early = 5 * time.Second, 3 * time.Minute
	began := time.Now()
	for ctx.Err() == nil {
		if err := a.machine.Install(ctx); err != nil && ctx.Err() == nil {
			a.Logger.Error("this machine does not mount images lazily, or not as it should", "error", err)
		}
		if ctx.Err() != nil {
			return
		}
		a.report(ctx)
		// What was just changed is watched closely.
		interval := a.Interval
		if time.Since(began) < early {
			interval = min(interval, soon)
		}
		for next := time.Now().Add(interval); ctx.Err() == nil && time.Now().Before(next); {
			select {
			case <-ctx.Done():
			case <-time.After(min(soon, interval)):
			}
			if ctx.Err() == nil {
				a.machine.Refresh(ctx)
				a.report(ctx)
			}
		}
	}
}

// leave decides what becomes of the machine when this process ends.
func (a *Agent) leave() error {
	const limit = 25 * time.Second // of the pod's grace period
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	why, err := a.unwanted(ctx)
	if err != nil {
		a.Logger.Warn("it is not known whether this node is to stay one: it does", "error", err)
		return nil
	}
	if why == "" {
		a.Logger.Info("the daemon goes on without this process")
		return nil
	}
	a.Logger.Info("this machine is to be as it was before", "because", why)
	if err := a.machine.StartRetiring(ctx); err != nil {
		return fmt.Errorf("leaving this machine: %w", err)
	}
	if err := clearNode(ctx, a.API, a.Node); err != nil {
		a.Logger.Warn("the annotation and the condition of the node are left", "error", err)
	}
	return nil
}

// unwanted says why the machine is not to be a node any more; "" when it is. An error
// means that nobody knows.
func (a *Agent) unwanted(ctx context.Context) (string, error) {
	ns, name, _ := strings.Cut(a.DaemonSet, "/")
	var ds struct {
		Metadata struct {
			DeletionTimestamp *time.Time `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec struct {
			Template struct {
				Spec struct {
					NodeSelector map[string]string `json:"nodeSelector"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	err := a.API.Get(ctx, "/apis/apps/v1/namespaces/"+ns+"/daemonsets/"+name, &ds)
	switch {
	case kubeapi.IsNotFound(err):
		return "the DaemonSet is gone", nil
	case kubeapi.IsForbidden(err):
		return "the DaemonSet's rights are gone", nil
	case err != nil:
		return "", err
	case ds.Metadata.DeletionTimestamp != nil:
		return "the DaemonSet is being deleted", nil
	}
	var n node
	if err := a.API.Get(ctx, "/api/v1/nodes/"+a.Node, &n); err != nil {
		return "", err
	}
	for key, value := range ds.Spec.Template.Spec.NodeSelector {
		if n.Metadata.Labels[key] != value {
			return fmt.Sprintf("the node is not labelled %s=%s any more", key, value), nil
		}
	}
	return "", nil
}
