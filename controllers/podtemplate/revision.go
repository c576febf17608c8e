package podtemplate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"

	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// Revision returns a short hash of the template, fit for a label value. It hashes
// the template's JSON with sorted keys and without nulls, so it depends on what the
// user wrote and not on the memory layout of a Go type: an upgrade of the operator
// leaves it as it is.
//
// Its limits: a field that the operator's Kubernetes libraries do not know is not
// seen, so an upgrade that learns to know it changes the revision of the templates
// that use it (rightly: their pods were made without it). A default that is written
// out changes the revision although the pods are the same. Two templates meet in
// one hash with a chance of one in 4 billion.
func Revision(template *v1alpha1.PodTemplate) string {
	sum := fnv.New32a()
	_, _ = sum.Write(canonical(template)) // a hash takes everything
	return utilrand.SafeEncodeString(fmt.Sprint(sum.Sum32()))
}

// completion counts what Complete has made of pods with an executor: those that an earlier
// version of the operator has completed otherwise are replaced while they are idle.
const completion = 2

// PoolRevision returns the revision of the pool's pods. The executor that the operator
// adds, and what it adds for one that is written into the template, make a part of it; so
// does the key that the executor takes requests of, which is how a rotated key reaches the
// pods that are idle.
func PoolRevision(pool *v1alpha1.Pool, x *Executor) string {
	injection := x.InjectsInto(pool)
	if x == nil || injection == InjectNothing && !HasExecutor(pool.Spec.Template) {
		return Revision(pool.Spec.Template)
	}
	image := x.Image
	if injection == InjectNothing {
		image = "" // its own decides
	}
	sum := fnv.New32a()
	_, _ = sum.Write(canonical(pool.Spec.Template))
	_, _ = fmt.Fprintf(sum, "\n%d %d %s %s", completion, injection, image, x.KeyID)
	return utilrand.SafeEncodeString(fmt.Sprint(sum.Sum32()))
}

// canonical returns JSON with sorted keys and no nulls: whether a zero value is
// written as null or left out is a detail of the library's version.
func canonical(template *v1alpha1.PodTemplate) []byte {
	raw, err := json.Marshal(template)
	if err != nil {
		panic(fmt.Sprintf("marshalling a PodTemplate: %v", err)) // it has no type that can fail
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber() // as float64, large user ids would meet in one hash
	var value any
	if err := decoder.Decode(&value); err != nil {
		panic(fmt.Sprintf("unmarshalling a PodTemplate: %v", err))
	}
	raw, err = json.Marshal(withoutNulls(value))
	if err != nil {
		panic(fmt.Sprintf("marshalling a PodTemplate: %v", err))
	}
	return raw
}

func withoutNulls(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, element := range v {
			if element == nil {
				delete(v, key)
				continue
			}
			v[key] = withoutNulls(element)
		}
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	}
	return value
}
