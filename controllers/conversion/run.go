package conversion

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
)

// Outcome is how a task ended.
type Outcome struct {
	// Result is what was done; only its Observation where Err is set.
	Result converter.Result
	// Err is a fault; nil for a success, also for one that had nothing to do.
	Err error
	// Cause is why the context was cancelled; nil if it was not.
	Cause error
	// Revision is that of the registry's settings that were used.
	Revision string
	// Started is when the work began, Elapsed how long it took.
	Started time.Time
	Elapsed time.Duration
}

// Runner does the work of one conversion.
type Runner interface {
	Run(ctx context.Context, r *v1alpha1.Registry, c *v1alpha1.ImageConversion) (converter.Result, error)
}

// InProcess converts in the operator's own process.
type InProcess struct {
	Access *registry.Store
	// TempDir is where layers wait for their upload; empty means the system's.
	TempDir string
	// Workers is how many processors compress one layer; 0 means all.
	Workers int
}

// Run implements Runner.
func (p *InProcess) Run(ctx context.Context, r *v1alpha1.Registry, c *v1alpha1.ImageConversion) (converter.Result, error) {
	access, err := p.Access.Access(ctx, r)
	if err != nil {
		return converter.Result{}, err
	}
	o := access.Options
	conv := converter.New(converter.Options{
		TempDir: p.TempDir, Workers: p.Workers, Keychain: o.Keychain, Transport: o.Transport,
	})
	return conv.Convert(ctx, RequestOf(r, c))
}

// RequestOf is what the converter is asked for.
func RequestOf(r *v1alpha1.Registry, c *v1alpha1.ImageConversion) converter.Request {
	req := converter.Request{
		Source: Source(r, &c.Spec), SourceDigest: c.Spec.Digest,
		Target: Target(r, &c.Spec), PlainHTTP: r.PlainHTTP(), Format: encode.Format(c.Spec.Format),
	}
	for _, p := range c.Spec.Platforms {
		req.Platforms = append(req.Platforms, string(p))
	}
	return req
}

// execute runs a task with everything read anew: what it was submitted with may
// be old by the time it has its turn.
func (r *Reconciler) execute(ctx context.Context, t Task) (out Outcome) {
	out.Started = r.Now()
	defer func() { out.Elapsed = r.Now().Sub(out.Started) }()
	ctx, cancel := context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("longer than %v: %w", r.Timeout, context.DeadlineExceeded))
	defer cancel()
	var c v1alpha1.ImageConversion
	if out.Err = r.Client.Get(ctx, t.Key, &c); out.Err != nil {
		return out
	}
	var reg v1alpha1.Registry
	if out.Err = r.Client.Get(ctx, t.Registry, &reg); out.Err != nil {
		return out
	}
	access, err := r.Access.Access(ctx, &reg)
	if err != nil {
		out.Err = accessFault(err)
		return out
	}
	out.Revision = access.Revision
	out.Result, out.Err = r.Runner.Run(ctx, &reg, &c)
	if out.Err != nil {
		out.Err = accessFault(out.Err)
		if cause := context.Cause(ctx); cause != nil {
			out.Cause = cause
		}
	}
	return out
}

// accessFault makes a fault of an error that is none: what Kubernetes says may
// pass, what a Secret lacks does not until somebody changes it.
func accessFault(err error) error {
	var secret *registry.SecretError
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &secret):
		return fault.New(v1alpha1.ReasonSecretInvalid, nil, "%s", secret.Error())
	case client.IgnoreNotFound(err) == nil:
		return fault.NewTemporary(fault.Internal, err, "the Registry or the ImageConversion is gone")
	}
	return fault.NewTemporary(fault.Internal, err, "the Kubernetes API failed")
}
