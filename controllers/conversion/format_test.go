package conversion

import (
	"testing"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/converter/encode"
)

// The converter knows the formats of the API by the same names, and another format is
// another conversion.
func TestFormats(t *testing.T) {
	r := &v1alpha1.Registry{Spec: v1alpha1.RegistrySpec{Endpoint: "https://r.example"}}
	names := map[string]bool{}
	for format, want := range map[v1alpha1.Format]encode.Format{v1alpha1.FormatEstargz: encode.EStargz, v1alpha1.FormatZstdChunked: encode.ZstdChunked} {
		c := &v1alpha1.ImageConversion{Spec: v1alpha1.ImageConversionSpec{Repository: "app", Tag: "v1", Format: format}}
		if got := RequestOf(r, c).Format; got != want {
			t.Errorf("%s is %s for the converter", format, got)
		}
		names[Name(&c.Spec)] = true
	}
	if len(names) != 2 {
		t.Errorf("names %v", names)
	}
}
