package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/bench/peers"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// buildPrograms builds our program and what the nodes run.
func (b *bench) buildPrograms(ctx context.Context) error {
	root, err := tools.Root(ctx)
	if err != nil {
		return err
	}
	b.apparate = filepath.Join(root, "bin", "apparate")
	if err := tools.GoBuild(ctx, b.progress, "apparate", root, b.apparate, "-ldflags", "-s -w", "./cmd/apparate"); err != nil {
		return err
	}
	if b.tools, err = tools.Ensure(ctx, b.progress, programs()...); err != nil {
		return err
	}
	for _, a := range b.arms {
		if a.peer == nil {
			continue
		}
		if err := a.peer.Ensure(ctx, b.progress); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		b.results.Peers[a.name] = a.peer.Version()
	}
	return nil
}

// prepareImages pushes and converts every image.
func (b *bench) prepareImages(ctx context.Context) error {
	cache, err := tools.CacheDir()
	if err != nil {
		return err
	}
	for i := range b.subjects {
		if first := slices.IndexFunc(b.subjects[:i], func(s subject) bool { return s.image == b.subjects[i].image }); first >= 0 {
			// Another operation of the same image: it is there.
			b.subjects[i].names, b.subjects[i].failed = maps.Clone(b.subjects[first].names), b.subjects[first].failed
			r := b.results.Images[first]
			b.results.Images = append(b.results.Images, Image{Name: b.subjects[i].name, Layers: r.Layers, Size: r.Size})
			continue
		}
		if err := b.prepareImage(ctx, cache, &b.subjects[i]); err != nil {
			return fmt.Errorf("image %s: %w", b.subjects[i].name, err)
		}
	}
	return b.prepareProfiles(ctx)
}

func (b *bench) prepareImage(ctx context.Context, cache string, s *subject) error {
	img, _, err := images.Build(ctx, s.image, cache, b.progress)
	if err != nil {
		return err
	}
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	result := Image{Name: s.name, Layers: len(m.Layers), Variants: map[string]Variant{}}
	if result.Size, err = images.Size(img); err != nil {
		return err
	}
	plain := b.registry.Addr + "/" + s.spec.Repository + ":" + plainTag
	ref, err := name.NewTag(plain)
	if err != nil {
		return err
	}
	tools.Say(b.progress, "%s: pushing %.1f MB to the registry", s.name, mb(result.Size))
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return err
	}
	// A registry that was kept has what an earlier call converted.
	kept, err := remote.List(ref.Repository, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	accelerated := false
	for _, a := range b.arms {
		start := time.Now()
		tag := plainTag
		switch {
		case a.profile != "":
			continue // prepareProfiles makes it
		case a.kind == ours && accelerated:
			s.names[a.name] = s.spec.Repository + ":" + apparateTag
			continue
		case a.peer != nil:
			tag, err = a.peer.Convert(ctx, peers.Registry{Addr: b.registry.Addr}, s.spec.Repository, plainTag)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil { // its starts fail, and count
				tools.Say(b.progress, "%s: converting for %s FAILED: %v", s.name, a.name, err)
				s.failed[a.name] = fmt.Errorf("the image was not converted: %w", err)
				continue
			}
		case a.kind == ours:
			tag, accelerated = apparateTag, true
			if err := b.run(ctx, "convert", plain); err != nil {
				return err
			}
		}
		s.names[a.name] = s.spec.Repository + ":" + tag
		if tag == plainTag {
			continue
		}
		v := Variant{Tag: tag, Seconds: time.Since(start).Seconds()}
		if slices.Contains(kept, tag) {
			v.Seconds = 0
		}
		if v.Size, err = b.remoteSize(ctx, *s, tag); err != nil {
			return err
		}
		tools.Say(b.progress, "%s: for %s %.1f MB in %.1f s", s.name, a.name, mb(v.Size), v.Seconds)
		result.Variants[a.name] = v
	}
	b.results.Images = append(b.results.Images, result)
	return nil
}

// remoteSize is what a full pull of a tag fetches.
func (b *bench) remoteSize(ctx context.Context, s subject, tag string) (int64, error) {
	ref, err := name.NewTag(b.registry.Addr + "/" + s.spec.Repository + ":" + tag)
	if err != nil {
		return 0, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	return images.Size(img)
}

// run runs our own program and shows its output as progress.
func (b *bench) run(ctx context.Context, args ...string) error {
	return tools.Show(ctx, b.progress, b.apparate, args...)
}
