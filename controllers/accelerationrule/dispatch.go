package accelerationrule

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
	oci "github.com/apparate/apparate/converter/registry"
)

// Dispatcher turns pushes into conversions: it asks the rules by name, then the
// registry for the truth, then the rules again with what the registry said.
type Dispatcher struct {
	// Client reads from the cache.
	Client   client.Client
	Book     *Book
	Queue    *conversion.Queue
	Sessions Sessions
	// Inventory learns what was handled.
	Inventory *watch.Inventory
	// Lost asks for a scan of a registry that does not show a push yet. It must not
	// block.
	Lost func(match.Key)
	// Metrics counts decisions; it may be nil.
	Metrics *Metrics
	Now     func() time.Time
}

// Sessions gives the session of a Registry; see registry.Sessions.
type Sessions interface {
	Get(context.Context, *v1alpha1.Registry) (*oci.Session, error)
}

// Report implements watch.Report.
func (d *Dispatcher) Report(ctx context.Context, p watch.Push) (watch.Outcome, error) {
	out, err := d.report(ctx, p)
	if err == nil {
		d.Metrics.decided(out.Reason)
	}
	return out, err
}

func (d *Dispatcher) report(ctx context.Context, p watch.Push) (watch.Outcome, error) {
	set, err := d.Book.Set(ctx)
	if err != nil {
		return watch.Outcome{}, err
	}
	img := match.Image{Registry: p.Registry, Repository: p.Repository, Tag: p.Tag}
	decision := set.Decide(img)
	if !decision.Convert {
		return watch.Outcome{Reason: decision.Reason, Message: set.Explain(img, decision)}, nil
	}
	// Better to say so before the registry is asked for nothing.
	if err := d.Queue.Room(p.Origin); err != nil {
		return watch.Outcome{}, err
	}
	var reg v1alpha1.Registry
	if err := d.Client.Get(ctx, p.Registry, &reg); err != nil {
		return watch.Outcome{}, fmt.Errorf("reading Registry %s: %w", p.Registry, err)
	}
	session, err := d.Sessions.Get(ctx, &reg)
	if err != nil {
		return watch.Outcome{}, err
	}
	looked := d.Now()
	if p.Manifest == nil {
		var settled bool
		if settled, err = d.look(ctx, session, &p); !settled {
			// What it shows is the truth for now; the next scan looks again.
			looked = time.Time{}
			defer d.Lost(p.Registry)
		}
	}
	if err == nil {
		img.Facts, err = facts(ctx, session, &p, decision.Rule)
	}
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return watch.Outcome{Reason: string(fault.NotFound), Message: err.Error()}, nil
		}
		return watch.Outcome{}, err
	}
	decision = set.Decide(img)
	out := watch.Outcome{Reason: decision.Reason, Message: set.Explain(img, decision), Digest: img.Facts.Digest}
	if decision.Convert {
		if out.Conversion, err = d.enqueue(ctx, session, &reg, &p, &img, decision.Rule); err != nil {
			return watch.Outcome{}, err
		}
	}
	d.Inventory.Seen(p.Registry, p.Repository, p.Tag, out.Digest, decision.Rule.Way(), looked)
	return out, nil
}

// patience are the waits before a registry is asked again that does not show what
// a notification says: some send it a moment before the tag is moved (CNCF
// Distribution does), some answer from a replica that is behind.
var patience = [...]time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}

// look asks the registry what a push that somebody spoke of has come to. It is
// not settled when the registry shows something else than what was pushed.
func (d *Dispatcher) look(ctx context.Context, s *oci.Session, p *watch.Push) (settled bool, err error) {
	for i := 0; ; i++ {
		m, _, err := s.Look(ctx, p.Repository, p.Tag, "")
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return false, err
		}
		p.Manifest = &m
		if err == nil && d.fresh(p, m.Digest) {
			return true, nil
		}
		if i == len(patience) {
			// Who does not say what was pushed has most likely pushed the same again.
			return p.Digest == "" && err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(patience[i]):
		}
	}
}

// fresh says whether a digest can be what the push was of.
func (d *Dispatcher) fresh(p *watch.Push, digest string) bool {
	if p.Digest != "" {
		return p.Digest == digest
	}
	return d.Inventory.Digest(p.Registry, p.Repository, p.Tag) != digest
}

// facts are what the registry said that the image is.
func facts(ctx context.Context, s *oci.Session, p *watch.Push, rule *match.Rule) (*match.Facts, error) {
	m := p.Manifest
	in, err := converter.Inspect(*m)
	if err != nil {
		// The converter would refuse it with the same words.
		return &match.Facts{Digest: m.Digest, NotImage: err.Error()}, nil //nolint:nilerr // an answer, and no failure
	}
	f := &match.Facts{
		Digest: m.Digest, Accelerated: in.Accelerated, NotImage: in.NotImage, Platforms: in.Platforms,
		AcceleratedFrom: p.AcceleratedFrom,
	}
	if len(rule.Platforms) > 0 && in.ConfigDigest != "" {
		raw, err := s.ReadBlob(ctx, p.Repository, in.ConfigDigest, in.ConfigSize)
		if err != nil {
			return nil, err
		}
		if platform, err := converter.ConfigPlatform(raw); err == nil && platform != "" {
			f.Platforms = []string{platform}
		}
	}
	return f, nil
}

// enqueue makes sure that there is a conversion.
func (d *Dispatcher) enqueue(ctx context.Context, s *oci.Session, reg *v1alpha1.Registry, p *watch.Push, img *match.Image, won *match.Rule) (string, error) {
	var rule v1alpha1.AccelerationRule
	if err := d.Client.Get(ctx, won.Key, &rule); err != nil {
		if apierrors.IsNotFound(err) {
			return "", fmt.Errorf("rule %s was deleted just now", won.Key)
		}
		return "", err
	}
	name, created, err := d.Queue.Add(ctx, conversion.Wish{
		Registry: reg, Rule: &rule, Origin: p.Origin,
		Spec: v1alpha1.ImageConversionSpec{
			RegistryRef: v1alpha1.LocalReference{Name: reg.Name},
			Repository:  p.Repository, Tag: p.Tag, Digest: img.Facts.Digest,
			RuleRef: &v1alpha1.LocalReference{Name: rule.Name},
			Format:  won.Format, Platforms: slices.Clone(won.Platforms),
		},
		UpToDate: func(ctx context.Context) (bool, error) {
			m, _, err := s.Look(ctx, p.Repository, p.Tag+image.Suffix, "")
			if fault.KindOf(err) == fault.NotFound {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			in, err := converter.Inspect(m)
			return err == nil && in.SourceDigest == img.Facts.Digest, nil
		},
	})
	if created {
		d.Metrics.created(p.Origin)
	}
	return name, err
}
