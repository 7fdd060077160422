package profile

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/predict"
	"github.com/apparate/apparate/converter/registry"
)

// Predicted says what Predict did.
type Predicted struct {
	Pushed
	Summary profile.Summary `json:"summary"`
	// Files is how many files, or parts of them, the prediction lists.
	Files int `json:"files"`
}

// maxConfig is the longest config in bytes that is read.
const maxConfig = 8 << 20

// Predict gives an image that has no profile one that was told from the image alone: what
// its config starts, and what that reads first. done is false where there is nothing to
// predict: the image has a profile, or too many files, or nothing was understood.
func Predict(ctx context.Context, client *registry.Client, ref name.Digest, o BuildOptions) (p Predicted, done bool, err error) {
	if _, has, err := Find(ctx, client, ref); err != nil || has {
		return Predicted{}, false, err
	}
	im, err := Load(ctx, client, ref)
	if err != nil {
		return Predicted{}, false, err
	}
	c, err := im.started(ctx)
	if err != nil {
		return Predicted{}, false, err
	}
	if len(c.Entrypoint)+len(c.Cmd) == 0 {
		return Predicted{}, false, nil
	}
	t, ok, err := im.files(ctx)
	if err != nil || !ok {
		return Predicted{}, false, err
	}
	ranges, err := predict.Files(ctx, t, c)
	if err = errors.Join(err, t.err); err != nil {
		return Predicted{}, false, err
	}
	plan := t.plan(ranges)
	if len(plan) == 0 {
		return Predicted{}, false, nil
	}
	pack, err := Build(ctx, im, plan, o)
	if err != nil {
		return Predicted{}, false, err
	}
	p = Predicted{Files: len(ranges), Summary: profile.Summary{
		Predicted: true, Chunks: len(pack.Plan), ContentBytes: pack.Plan.ContentBytes(), PackBytes: pack.Table.Size,
	}}
	p.Pushed, err = Push(ctx, im, &pack.Table, pack.Upload(), p.Summary)
	return p, err == nil, errors.Join(err, pack.Close())
}

// started is what the image's config starts. A config of another form starts nothing.
func (im *Image) started(ctx context.Context) (predict.Config, error) {
	var doc struct{ Config predict.Config }
	if im.configSize <= 0 || im.configSize > maxConfig {
		return doc.Config, nil
	}
	raw, err := im.client.ReadBlob(ctx, im.Ref.Context(), im.config, im.configSize)
	if err == nil && json.Unmarshal(raw, &doc) != nil {
		doc.Config = predict.Config{}
	}
	return doc.Config, err
}
