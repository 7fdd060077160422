package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/apparate/apparate/controllers/profile"
	"github.com/apparate/apparate/controllers/serve"
	"github.com/apparate/apparate/controllers/status"
)

// SampleOptions say where nodes send samples of starts, from which profiles are made.
type SampleOptions struct {
	// Address is the host:port to serve on; "0" takes no samples and makes no profiles.
	Address string
	// Account is namespace/name of the service account of the nodes' agents.
	Account string
	// Cert and Key are PEM files for TLS, as for notifications.
	Cert, Key string
}

// check returns what is wrong with the options, naming the flag.
func (o *SampleOptions) check() error {
	if o.Address == "0" {
		return nil
	}
	if _, err := o.account(); err != nil {
		return err
	}
	if (o.Cert == "") != (o.Key == "") {
		return errors.New("--samples-cert and --samples-key belong together: give both or none")
	}
	return nil
}

func (o *SampleOptions) account() (types.NamespacedName, error) {
	ns, name, ok := strings.Cut(o.Account, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}, fmt.Errorf("--samples-account %q: write namespace/name of the nodes' service account", o.Account)
	}
	return types.NamespacedName{Namespace: ns, Name: name}, nil
}

// profiles adds the endpoint for samples, in every replica, and what makes profiles of
// them, in the leader.
func (p *parts) profiles(m manager.Manager, o Options, events status.Recorder) error {
	if o.Samples.Address == "0" {
		return nil
	}
	account, err := o.Samples.account()
	if err != nil {
		return err
	}
	p.keeper = &profile.Keeper{
		Works: &profile.Registries{
			Client: m.GetClient(), Access: p.store, Matches: p.book.Repository, Events: events, TempDir: o.TempDir,
		},
		Now: time.Now,
	}
	p.keeper.Metrics = profile.NewMetrics(o.registerer(), p.keeper.Held)
	receiver := &profile.Receiver{
		Gate: &profile.Gate{
			Review:  func(ctx context.Context, r *authenticationv1.TokenReview) error { return m.GetClient().Create(ctx, r) },
			Account: account, Now: time.Now,
		},
		Leads: func() bool {
			select {
			case <-m.Elected():
				return true
			default:
				return false
			}
		},
		Take: p.keeper.Take, Count: p.keeper.Metrics.Sample, Now: time.Now,
	}
	server := &serve.Server{Address: o.Samples.Address, CertFile: o.Samples.Cert, KeyFile: o.Samples.Key, Log: o.Log.WithName("samples")}
	return errors.Join(
		m.Add(everywhere(func(ctx context.Context) error { return receiver.Serve(ctx, server) })),
		m.Add(manager.RunnableFunc(func(ctx context.Context) error {
			return p.keeper.Run(log.IntoContext(ctx, o.Log.WithName("profiles")))
		})),
	)
}
