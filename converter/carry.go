package converter

import (
	"context"
	"fmt"
	"time"

	"github.com/apparate/apparate/converter/profile"
)

// Profiles are a courtesy: they may neither fail a conversion nor hold it up for long.
const (
	profilePatience = 2 * time.Minute
	maxProfiles     = 8 // platforms
)

// ofPlatform is the manifest of an image for one platform.
type ofPlatform struct{ platform, digest string }

// giveProfiles gives the new images start-up profiles: those of the images that the
// target tag named before, or else what can be told of their starts. It comes after the
// tag: the image counts, and can be used meanwhile.
func (j *job) giveProfiles(ctx context.Context) {
	if len(j.made) == 0 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, profilePatience, fmt.Errorf("it took longer than %s", profilePatience))
	defer cancel()
	before := map[string]string{}
	if j.previous != nil {
		before = j.previousPlatforms(ctx)
	}
	for _, now := range j.made[:min(len(j.made), maxProfiles)] {
		done, err := j.carryProfile(ctx, before[now.platform], now)
		if err == nil && !done && j.req.Predict {
			err = j.predictProfile(ctx, now)
		}
		if err != nil {
			j.emit(Event{Type: ProfileLost, Platform: now.platform, Digest: now.digest, Error: err.Error()})
		}
	}
}

// carryProfile gives an image the profile of an older one; done is false where that has
// none that is worth it.
func (j *job) carryProfile(ctx context.Context, old string, now ofPlatform) (done bool, err error) {
	if old == "" || old == now.digest {
		return false, nil
	}
	repo := j.target.Context()
	c, done, err := profile.Carry(ctx, j.client, repo.Digest(old), repo.Digest(now.digest), j.packing())
	if err == nil && done {
		j.result.Profiles++
		j.emit(Event{Type: ProfileCarried, Platform: now.platform, Digest: c.Descriptor.Digest, Reason: carriedReason(&c)})
	}
	return done, err
}

// predictProfile gives an image a profile that is told from what it starts.
func (j *job) predictProfile(ctx context.Context, now ofPlatform) error {
	p, done, err := profile.Predict(ctx, j.client, j.target.Context().Digest(now.digest), j.packing())
	if err == nil && done {
		j.result.Predicted++
		j.emit(Event{Type: ProfilePredicted, Platform: now.platform, Digest: p.Descriptor.Digest,
			Reason: fmt.Sprintf("%d chunks of %d files", p.Summary.Chunks, p.Files)})
	}
	return err
}

func (j *job) packing() profile.BuildOptions {
	return profile.BuildOptions{TempDir: j.o.TempDir, Workers: j.o.Workers}
}

// carriedReason says in a few words how much of a profile is still of use.
func carriedReason(c *profile.Carried) string {
	text := fmt.Sprintf("%d of %d chunks are in the new image", c.Chunks, c.Chunks+c.Gone)
	if c.Rebuilt {
		text += ", and were packed anew"
	}
	return text
}

// previousPlatforms are the manifests that the target tag led to, by platform.
// What cannot be read has no profile that could be carried over.
func (j *job) previousPlatforms(ctx context.Context) map[string]string {
	all := make(map[string]string)
	if isIndex(j.previous.MediaType) {
		for i := range j.previous.doc.Manifests[:min(len(j.previous.doc.Manifests), maxNodes)] {
			d := &j.previous.doc.Manifests[i]
			if p := platformName(d.Platform); p != "" {
				all[p] = d.Digest
			}
		}
		return all
	}
	if notImage(j.previous.doc) != "" {
		return all
	}
	d := j.previous.doc.Config
	raw, err := j.client.ReadBlob(ctx, j.target.Context(), d.Digest, d.Size)
	if err != nil {
		return all
	}
	if c, err := parseConfig(raw, j.target.String()); err == nil {
		all[platformName(&c.platform)] = j.previous.Digest
	}
	return all
}
