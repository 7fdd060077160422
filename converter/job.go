package converter

import (
	"context"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// checks is how many HEAD requests run at once before the tag is put.
const checks = 8

// job is one run of Observe or Convert.
type job struct {
	o         Options
	req       Request
	client    *registry.Client
	source    name.Reference
	target    name.Tag
	platforms []v1.Platform

	// What was found.
	seen          Observation
	top, previous *manifest

	// The plan.
	root        *node
	nodes       int
	images      []*node
	accelerated bool // a child was accelerated already
	layers      map[string]*layer
	order       []*layer
	reusable    map[string]reusable

	// What has to be in the target before it gets its tag.
	pushedBlobs     map[string]bool
	pushedManifests map[string]bool
	made            []ofPlatform // the images of the result

	mu      sync.Mutex // guards result while layers run
	result  Result
	eventMu sync.Mutex
}

// run converts.
func (j *job) run(ctx context.Context) error {
	if err := j.observe(ctx); err != nil {
		return err
	}
	j.result.Observation = j.seen
	if j.seen.UpToDate {
		j.emit(Event{Type: UpToDate, Digest: j.seen.TargetDigest})
		return nil
	}
	if err := j.plan(ctx); err != nil {
		return err
	}
	// Better to learn now than after the work that there is no right to push.
	if err := j.client.CheckPush(ctx, j.target.Context()); err != nil {
		return err
	}
	j.findReusable(ctx)
	j.result.Layers = len(j.order)
	j.emit(Event{Type: Started, Layers: len(j.order), BytesInTotal: j.result.SourceSize, Digest: j.seen.SourceDigest})
	if err := j.convertLayers(ctx); err != nil {
		return err
	}
	out, err := j.push(ctx, j.root)
	if err != nil {
		return err
	}
	return j.publish(ctx, out)
}

// convertLayers works on all layers, some at a time.
func (j *job) convertLayers(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(j.o.Parallel)
	for _, l := range j.order {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return j.convertLayer(ctx, l)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, l := range j.order {
		j.result.TargetSize += l.done.size
	}
	return nil
}

// publish checks that everything is there, and moves the tag: the one step that
// users see.
func (j *job) publish(ctx context.Context, top pushed) error {
	if err := j.verify(ctx); err != nil {
		return err
	}
	if err := j.recheck(ctx); err != nil {
		return err
	}
	if err := j.client.PutManifest(ctx, j.target, top.mediaType, top.raw); err != nil {
		return err
	}
	j.result.TargetDigest = top.digest
	j.emit(Event{Type: Tagged, Digest: top.digest})
	j.giveProfiles(ctx)
	return nil
}

// verify asks the registry for every blob and manifest of the result.
func (j *job) verify(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(checks)
	repo := j.target.Context()
	missing := func(what, digest string) error {
		return fault.NewTemporary(fault.ContentMissing, nil, "%s took the %s %s and does not have it: try again", repo, what, digest)
	}
	for d := range j.pushedBlobs {
		g.Go(func() error {
			if ok, err := j.client.HasBlob(ctx, repo, d); err != nil || !ok {
				return firstError(err, missing("blob", d))
			}
			return nil
		})
	}
	for d := range j.pushedManifests {
		g.Go(func() error {
			if ok, err := j.client.Exists(ctx, repo.Digest(d)); err != nil || !ok {
				return firstError(err, missing("manifest", d))
			}
			return nil
		})
	}
	return g.Wait()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
