package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// csv holds what the tests read of a ClusterServiceVersion.
type csv struct {
	Metadata struct {
		Annotations map[string]string
	}
	Spec struct {
		MinKubeVersion string
		Icon           []struct{ Base64data, Mediatype string }
		Links          []struct{ URL string }
		InstallModes   []struct {
			Type      string
			Supported bool
		}
		RelatedImages             []struct{ Name, Image string }
		Customresourcedefinitions struct {
			Owned []struct {
				Kind                               string
				SpecDescriptors, StatusDescriptors []struct{ Path string }
			}
		}
		Webhookdefinitions []struct{ Type, FailurePolicy, WebhookPath string }
		Install            struct {
			Spec struct {
				Permissions, ClusterPermissions []struct{ Rules []rule }
			}
		}
	}
}

type rule struct{ APIGroups, Resources, ResourceNames, Verbs []string }

func readCSV(t *testing.T) csv {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "bundle/manifests/opensandbox-operator.clusterserviceversion.yaml"))
	require.NoError(t, err)
	var c csv
	require.NoError(t, yaml.Unmarshal(text, &c))
	return c
}

// An API server before 1.30 drops optionalOldSelf, and then refuses the whole CRD, since
// the rule does not compile without it (feature gate CRDValidationRatcheting).
func TestTheOldestKubernetesTakesTheRulesOfTheCRDs(t *testing.T) {
	oldest := readCSV(t).Spec.MinKubeVersion
	var minor int
	_, err := fmt.Sscanf(oldest, "1.%d.", &minor)
	require.NoError(t, err, oldest)
	files, err := filepath.Glob(filepath.Join(root, "bundle/manifests/sandbox.opensandbox.io_*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if strings.Contains(string(text), "optionalOldSelf:") {
			assert.GreaterOrEqual(t, minor, 30, "minKubeVersion %s is too old for %s", oldest, filepath.Base(file))
		}
	}
}

func TestTheCSVSaysWhatUsersSee(t *testing.T) {
	c := readCSV(t)
	supported := map[string]bool{}
	for _, mode := range c.Spec.InstallModes {
		supported[mode.Type] = mode.Supported
	}
	assert.Equal(t, map[string]bool{"OwnNamespace": true, "SingleNamespace": true, "MultiNamespace": true, "AllNamespaces": true}, supported)
	images := map[string]string{}
	for _, related := range c.Spec.RelatedImages {
		images[related.Name] = related.Image
	}
	require.Len(t, images, 2)
	assert.Contains(t, images["controller"], "/controller:")
	assert.Contains(t, images["task-executor"], "/task-executor:")
	assert.Equal(t, images["controller"], c.Metadata.Annotations["containerImage"])
	assert.Equal(t, "1.30.0", c.Spec.MinKubeVersion)
	assert.NotEmpty(t, c.Spec.Icon[0].Base64data)
	assert.NotEmpty(t, c.Spec.Links[0].URL)
	for _, kind := range []string{`"kind": "Pool"`, `"kind": "BatchSandbox"`} {
		assert.Contains(t, c.Metadata.Annotations["alm-examples"], kind)
	}
	require.Len(t, c.Spec.Customresourcedefinitions.Owned, 2)
	for _, owned := range c.Spec.Customresourcedefinitions.Owned {
		assert.NotEmpty(t, owned.SpecDescriptors, owned.Kind)
		assert.NotEmpty(t, owned.StatusDescriptors, owned.Kind)
	}
	require.Len(t, c.Spec.Webhookdefinitions, 4)
	for _, webhook := range c.Spec.Webhookdefinitions {
		assert.Equal(t, "Ignore", webhook.FailurePolicy, webhook.WebhookPath)
	}
}

// What concerns workloads is granted in the namespaces of the install mode alone, and
// of Secrets the operator reads its own by name.
func TestTheCSVGrantsNoMoreThanNeeded(t *testing.T) {
	c := readCSV(t)
	require.Len(t, c.Spec.Install.Spec.ClusterPermissions, 1)
	var reviews []string
	for _, r := range c.Spec.Install.Spec.ClusterPermissions[0].Rules {
		reviews = append(reviews, r.Resources...)
		assert.Equal(t, []string{"create"}, r.Verbs)
	}
	assert.ElementsMatch(t, []string{"tokenreviews", "subjectaccessreviews"}, reviews)
	require.Len(t, c.Spec.Install.Spec.Permissions, 1)
	for _, r := range c.Spec.Install.Spec.Permissions[0].Rules {
		assert.NotContains(t, append(append(r.Verbs, r.Resources...), r.APIGroups...), "*")
		if strings.Join(r.Resources, " ") != "secrets" {
			continue
		}
		if len(r.ResourceNames) == 0 {
			assert.Equal(t, []string{"create"}, r.Verbs, "a create cannot be limited to a name")
		} else {
			assert.Equal(t, []string{"opensandbox-executor-keys"}, r.ResourceNames)
			assert.ElementsMatch(t, []string{"get", "update"}, r.Verbs)
		}
	}
}

// OLM would overwrite a Secret of the bundle, and no mounted certificate is read from one.
func TestTheBundleShipsNoSecret(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "bundle/manifests/*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var obj struct{ Kind string }
		require.NoError(t, yaml.Unmarshal(text, &obj))
		assert.NotEqual(t, "Secret", obj.Kind, file)
	}
}
