package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
	"github.com/apparate/apparate/test/tools"
)

// startProfile is a profile with its pack.
type startProfile struct {
	table   *api.Table
	summary api.Summary
	pack    []byte
}

// prepareProfiles records a start of every image and pushes its profile for the arm
// that is given it, and wrong and stale ones for the others. Each arm has a repository
// of its own: a profile belongs to an image in a repository.
func (b *bench) prepareProfiles(ctx context.Context) error {
	wanted := map[string]arm{}
	for _, a := range b.arms {
		if a.profile != "" {
			wanted[a.profile] = a
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if a, ok := wanted[profilePredicted]; ok {
		for i := range b.subjects {
			if err := b.predictProfile(ctx, &b.subjects[i], a); err != nil {
				return fmt.Errorf("the predicted profile of %s: %w", b.subjects[i].name, err)
			}
		}
	}
	var all []startProfile
	for i := range b.subjects {
		own, err := b.recordProfile(ctx, &b.subjects[i])
		if errors.Is(err, errNotServed) {
			b.withoutProfiles("our snapshotter records no starts")
			return nil
		}
		if err != nil {
			return fmt.Errorf("the profile of %s: %w", b.subjects[i].name, err)
		}
		all = append(all, own)
		b.results.Images[i].Pack = int64(len(own.pack))
		b.results.Images[i].Profile = &own.summary
	}
	for i := range b.subjects {
		other := -1
		for j := range b.subjects {
			if k := (i + 1 + j) % len(b.subjects); b.subjects[k].image != b.subjects[i].image {
				other = k
				break
			}
		}
		if other < 0 {
			b.withoutProfiles("one image has no wrong profile")
			return nil
		}
		for kind, p := range map[string]startProfile{profileWrong: all[other], profileStale: stale(all[i], all[other])} {
			a, ok := wanted[kind]
			if !ok {
				continue
			}
			if err := b.pushProfile(ctx, &b.subjects[i], a, p); err != nil {
				return fmt.Errorf("%s for %s: %w", a.name, b.subjects[i].name, err)
			}
		}
	}
	return nil
}

// predictProfile gives the image of an arm the profile that is told from it alone.
func (b *bench) predictProfile(ctx context.Context, s *subject, a arm) error {
	there, err := b.copyFor(ctx, s, a.name)
	if err != nil {
		return err
	}
	s.names[a.name] = there
	return b.run(ctx, "profile", "predict", b.registry.Addr+"/"+there)
}

// withoutProfiles leaves out the arms whose image has no profile.
func (b *bench) withoutProfiles(reason string) {
	var rest []arm
	for _, a := range b.arms {
		if a.profile != "" && b.subjects[0].names[a.name] == "" {
			b.left("the arm %s: %s", a.name, reason)
			continue
		}
		rest = append(rest, a)
	}
	b.arms = rest
}

// copyFor copies the accelerated image into the repository of an arm and returns its
// name there, without the host.
func (b *bench) copyFor(ctx context.Context, s *subject, arm string) (string, error) {
	from, err := name.NewTag(b.registry.Addr + "/" + s.spec.Repository + ":" + apparateTag)
	if err != nil {
		return "", err
	}
	there := strings.ReplaceAll(s.name, "/", "-") + "-" + arm + ":" + apparateTag
	to, err := name.NewTag(b.registry.Addr + "/" + there)
	if err != nil {
		return "", err
	}
	img, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return "", err
	}
	return there, remote.Write(to, img, remote.WithContext(ctx))
}

// recordProfile starts the image, not over a shaped network, and makes a profile of
// what our snapshotter recorded, with the command that users have.
func (b *bench) recordProfile(ctx context.Context, s *subject) (startProfile, error) {
	there, err := b.copyFor(ctx, s, armOwn)
	if err != nil {
		return startProfile{}, err
	}
	tools.Say(b.progress, "%s: recording a start", s.name)
	if err := b.recordAndPush(ctx, s, b.registry.Addr+"/"+there); err != nil {
		return startProfile{}, err
	}
	s.names[armOwn], s.names[armBeforeOwn] = there, there
	client, ref, err := b.manifest(there)
	if err != nil {
		return startProfile{}, err
	}
	found, ok, err := profile.Find(ctx, client, ref)
	if err != nil || !ok {
		return startProfile{}, errors.Join(err, fmt.Errorf("no profile of %s is found after it was pushed", ref))
	}
	pack, err := b.blob(ctx, ref.Context().Digest(found.Table.Pack))
	tools.Say(b.progress, "%s: a profile of %d chunks, %.1f MB", s.name, found.Table.Chunks(), mb(found.Table.Size))
	return startProfile{found.Table, found.Summary, pack}, err
}

func (b *bench) recordAndPush(ctx context.Context, s *subject, ref string) (err error) {
	const patience = 90 * time.Second
	ctx, cancel := context.WithTimeout(ctx, startLimit+patience)
	defer cancel()
	h, err := b.newHost(ctx, arm{kind: ours}, b.registry.Addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := serves(ctx, h.node.StatusSocket(), "/samples"); err != nil {
		return err
	}
	if err := h.node.Pull(ctx, ref, h.snapshotter); err != nil {
		return err
	}
	if _, err := h.node.RunReady(ctx, ref, h.snapshotter, "subject", s.spec, s.env...); err != nil {
		return err
	}
	for until := time.Now().Add(patience); ; {
		text, err := ask(ctx, h.node.StatusSocket(), "/samples")
		if err != nil {
			return err
		}
		var samples []json.RawMessage
		if err := json.Unmarshal(text, &samples); err != nil {
			return fmt.Errorf("reading the samples: %w", err)
		}
		if len(samples) > 0 {
			return b.run(ctx, "profile", "push", ref, "--status-address", h.node.StatusSocket())
		}
		if time.Now().After(until) {
			return fmt.Errorf("no sample within %v of the start", patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// manifest is the digest of what there, a name without the host, is now.
func (b *bench) manifest(there string) (*registry.Client, name.Digest, error) {
	client, err := registry.New(registry.Options{})
	if err != nil {
		return nil, name.Digest{}, err
	}
	tag, err := name.NewTag(b.registry.Addr + "/" + there)
	if err != nil {
		return nil, name.Digest{}, err
	}
	d, err := remote.Head(tag)
	if err != nil {
		return nil, name.Digest{}, err
	}
	return client, tag.Context().Digest(d.Digest.String()), nil
}

func (b *bench) blob(ctx context.Context, ref name.Digest) (content []byte, err error) {
	l, err := remote.Layer(ref, remote.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return io.ReadAll(r)
}

// pushProfile puts a profile beside the image of an arm, whatever it is of.
func (b *bench) pushProfile(ctx context.Context, s *subject, a arm, p startProfile) error {
	there, err := b.copyFor(ctx, s, a.name)
	if err != nil {
		return err
	}
	client, ref, err := b.manifest(there)
	if err != nil {
		return err
	}
	im, err := profile.Load(ctx, client, ref)
	if err != nil {
		return err
	}
	if _, err := profile.Push(ctx, im, p.table, registry.Bytes(p.pack), p.summary); err != nil {
		return err
	}
	s.names[a.name] = there
	return nil
}

// stale is the profile of an older build of an image, of which half is still there:
// every second group is that of another image.
func stale(own, other startProfile) startProfile {
	s := startProfile{table: &api.Table{}, summary: own.summary}
	var pack bytes.Buffer
	frames := func(p startProfile) [][]byte {
		var all [][]byte
		rest := p.pack
		for _, g := range p.table.Groups {
			all = append(all, rest[:g.Size])
			rest = rest[g.Size:]
		}
		return all
	}
	mine, theirs := frames(own), frames(other)
	for i, g := range own.table.Groups {
		frame := mine[i]
		if i%2 == 1 && i < len(theirs) {
			g, frame = other.table.Groups[i], theirs[i]
		}
		s.table.Groups = append(s.table.Groups, g)
		pack.Write(frame)
	}
	s.pack = pack.Bytes()
	u := registry.Bytes(s.pack)
	s.table.Pack, s.table.Size = u.Digest, u.Size
	return s
}
