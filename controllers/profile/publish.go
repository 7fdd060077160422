package profile

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/controller-runtime/pkg/log"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/profile"
	oci "github.com/apparate/apparate/converter/registry"
)

// workers is how many processors compress a pack: the operator does other things, too.
const workers = 2

// Find implements Works.
func (w *Registries) Find(ctx context.Context, i Image) (p *Published, err error) {
	err = w.first(ctx, i, func(c candidate, o oci.Options) error {
		if err := accelerated(ctx, c, o, i); err != nil {
			return err
		}
		client, ref, err := open(c, o, i)
		if err != nil {
			return err
		}
		f, ok, err := profile.Find(ctx, client, ref)
		switch {
		case ok:
			p = &Published{IDs: ids(f.Table), Samples: f.Summary.Samples, Bytes: f.Table.Size}
			if f.Summary.CarriedFrom != "" {
				p.Samples = 1 // of another image, which may have other files
			}
		case fault.KindOf(err) == fault.ImageInvalid:
			// What nobody can read is replaced.
			log.FromContext(ctx).Info("the profile in the registry cannot be read", "repository", i.Repository, "manifest", i.Manifest, "error", err.Error())
			return nil
		}
		return err
	})
	return p, err
}

// Publish implements Works.
func (w *Registries) Publish(ctx context.Context, i Image, samples []*api.Sample, keep func(ids []uint64) bool) (p *Published, err error) {
	err = w.first(ctx, i, func(c candidate, o oci.Options) error {
		client, ref, err := open(c, o, i)
		if err != nil {
			return err
		}
		p, err = w.make(ctx, client, ref, samples, keep)
		if err != nil || p == nil {
			return err
		}
		log.FromContext(ctx).Info("a profile is published", "image", ref.String(), "samples", p.Samples, "bytes", p.Bytes, "what", p.Text)
		if err := w.tell(ctx, c, o, i, p.Text); err != nil {
			log.FromContext(ctx).Info("a profile's event is lost", "image", ref.String(), "error", err.Error())
		}
		return nil
	})
	return p, err
}

// open names an image for a client of its Registry.
func open(c candidate, o oci.Options, i Image) (*oci.Client, name.Digest, error) {
	client, err := oci.New(o)
	if err != nil {
		return nil, name.Digest{}, err
	}
	ref, err := client.Parse(c.registry.Host() + "/" + i.Repository + "@" + i.Manifest)
	if err != nil {
		return nil, name.Digest{}, err
	}
	d, ok := ref.(name.Digest)
	if !ok {
		return nil, name.Digest{}, fault.New(fault.BadName, nil, "%.300q has no digest", i.Manifest)
	}
	return client, d, nil
}

// make merges samples, and builds and pushes the pack where keep does not say that
// there is no need to.
func (w *Registries) make(ctx context.Context, client *oci.Client, ref name.Digest, samples []*api.Sample, keep func(ids []uint64) bool) (*Published, error) {
	list := make([]api.Sample, len(samples))
	for n := range samples {
		list[n] = *samples[n]
	}
	var planned []uint64
	made, err := profile.Make(ctx, client, ref, list, profile.Options{
		Build: profile.BuildOptions{TempDir: w.TempDir, Workers: workers},
		Keep: func(plan profile.Plan) bool {
			for n := range plan {
				planned = append(planned, api.ID(plan[n].Sum))
			}
			slices.Sort(planned)
			return keep(planned)
		},
	})
	if fault.KindOf(err) == fault.NotFound && len(planned) == 0 {
		// Nothing that the image has was read, they say: others may say more.
		log.FromContext(ctx).Info("samples have nothing of their image", "image", ref.String(), "samples", len(samples), "error", err.Error())
		return nil, nil
	}
	if err != nil || made.Kept || made.Unchanged {
		return nil, err
	}
	return &Published{IDs: planned, Samples: len(samples), Bytes: made.PackBytes, Text: text(made.Summary, ref)}, nil
}

// text says what a profile is worth.
func text(s api.Summary, ref name.Digest) string {
	const kib = 1 << 10
	out := fmt.Sprintf("a start-up profile of %s was published: %d chunks, %d KiB, of %d starts", ref, s.Chunks, s.PackBytes/kib, s.Samples)
	if s.HeldOut > 0 {
		out += fmt.Sprintf("; it has %.0f %% of what another start read, and %.0f %% that one did not read", 100*s.Coverage, 100*s.Waste)
	}
	return out
}

// ids are the chunks of a table, ascending.
func ids(t *api.Table) []uint64 {
	all := make([]uint64, 0, t.Chunks())
	for n := range t.Groups {
		for _, c := range t.Groups[n].Chunks {
			all = append(all, c.ID)
		}
	}
	slices.Sort(all)
	return all
}
