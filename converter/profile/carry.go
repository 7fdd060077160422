package profile

import (
	"context"
	"errors"
	"io"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/registry"
)

// maxGone is the share of a pack's content in percent that may be of no use to a
// new image before the pack is built anew: a node throws it away.
const maxGone = 20

// Carried says what Carry did.
type Carried struct {
	Pushed
	// Chunks of the profile that the new image has, and Gone that it has not.
	Chunks, Gone int
	// Rebuilt says that another pack was built.
	Rebuilt bool
}

// Carry gives the image to the profile of the image from, in the same
// repository: what was needed to start the one is mostly what the other needs,
// and chunks are known by their content. done is false where there is nothing to
// carry over: from has no profile of starts, to has one of its own, or they share no chunk of it.
func Carry(ctx context.Context, client *registry.Client, from, to name.Digest, o BuildOptions) (c Carried, done bool, err error) {
	old, ok, err := Find(ctx, client, from)
	if err != nil || !ok || old.Summary.Predicted { // of the new image more can be told
		return Carried{}, false, err
	}
	if _, has, err := Find(ctx, client, to); err != nil || has {
		return Carried{}, false, err
	}
	im, err := Load(ctx, client, to)
	if err != nil {
		return Carried{}, false, err
	}
	plan, err := replan(ctx, im, old.Table)
	if err != nil || len(plan) == 0 {
		return Carried{}, false, err
	}
	c.Chunks, c.Gone = len(plan), old.Table.Chunks()-len(plan)
	s := old.Summary
	s.CarriedFrom = from.DigestStr()
	all, kept := old.Table.ContentBytes(), plan.ContentBytes()
	if (all-kept)*100 <= all*maxGone {
		t := old.Table
		c.Pushed, err = Push(ctx, im, t, registry.Upload{Digest: t.Pack, Size: t.Size, Open: func() (io.ReadCloser, error) {
			return client.Blob(ctx, to.Context(), t.Pack, t.Size)
		}}, s)
		return c, err == nil, err
	}
	pack, err := Build(ctx, im, plan, o)
	if err != nil {
		return c, false, err
	}
	c.Rebuilt = true
	s.Chunks, s.ContentBytes, s.PackBytes = len(pack.Plan), pack.Plan.ContentBytes(), pack.Table.Size
	c.Pushed, err = Push(ctx, im, &pack.Table, pack.Upload(), s)
	return c, err == nil, errors.Join(err, pack.Close())
}

// key is how a table knows a chunk.
type key struct {
	id   uint64
	size int64
}

// resolve finds the chunks of a table in the image.
func (im *Image) resolve(ctx context.Context, t *profile.Table, names bool) (map[key][32]byte, error) {
	wanted := make(map[uint64]bool)
	for i := range t.Groups {
		for _, c := range t.Groups[i].Chunks {
			wanted[c.ID] = true
		}
	}
	if err := im.Locate(ctx, func(sum [32]byte) bool { return wanted[profile.ID(sum)] }, names); err != nil {
		return nil, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	known := make(map[key][32]byte, len(im.places))
	for sum, p := range im.places {
		known[key{profile.ID(sum), p.Size}] = sum
	}
	return known, nil
}

// Resolve says where the image has the chunks of a table, in the table's order
// and with the names of files; the place of one that it has not is zero.
func (im *Image) Resolve(ctx context.Context, t *profile.Table) ([]Place, error) {
	known, err := im.resolve(ctx, t, true)
	if err != nil {
		return nil, err
	}
	places := make([]Place, 0, t.Chunks())
	for i := range t.Groups {
		for _, c := range t.Groups[i].Chunks {
			var p Place
			if sum, ok := known[key{c.ID, c.Size}]; ok {
				p, _ = im.Place(sum)
			}
			places = append(places, p)
		}
	}
	return places, nil
}

// replan lists the chunks of a table that an image has, in the table's order.
func replan(ctx context.Context, im *Image, t *profile.Table) (Plan, error) {
	known, err := im.resolve(ctx, t, false)
	if err != nil {
		return nil, err
	}
	var plan Plan
	seen := make(map[[32]byte]bool)
	for i := range t.Groups {
		for _, c := range t.Groups[i].Chunks {
			sum, ok := known[key{c.ID, c.Size}]
			if !ok || seen[sum] {
				continue
			}
			seen[sum] = true
			p, _ := im.Place(sum)
			plan = append(plan, Planned{Layer: im.Layers[p.Layer].Digest, Sum: sum, Size: c.Size, At: c.At})
		}
	}
	return plan, nil
}
