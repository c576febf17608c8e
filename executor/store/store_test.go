package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	return s
}

func record(id string) Record {
	code := int32(3)
	return Record{
		Version: version, Digest: "abc",
		Task: api.Task{ID: id, State: api.Failed, ExitCode: &code, Reason: api.ReasonExitCode, Message: "\x00\uFFFD"},
	}
}

func TestARecordIsReadAsItWasSaved(t *testing.T) {
	s := open(t)
	want := record("a.b-c")
	require.NoError(t, s.Save(want))
	require.NoError(t, s.Save(want), "again")
	records, err := s.Load()
	require.NoError(t, err)
	assert.Equal(t, []Record{want}, records)

	require.NoError(t, s.Remove("a.b-c"))
	require.NoError(t, s.Remove("a.b-c"), "again")
	records, err = s.Load()
	require.NoError(t, err)
	assert.Empty(t, records)
	require.NoError(t, s.Save(want))
	require.NoError(t, s.Wipe())
	records, err = s.Load()
	require.NoError(t, err)
	assert.Empty(t, records)
}

func TestAnUnsafeIDIsRefused(t *testing.T) {
	s := open(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00"} {
		require.Error(t, s.Save(record(id)), id)
		assert.Error(t, s.Remove(id), id)
	}
}

func TestAnUnreadableRecordIsReplacedByOneThatSaysSo(t *testing.T) {
	for name, content := range map[string]string{
		"empty":            "",
		"cut off":          `{"version":2,"task":{"id":"a","sta`,
		"garbage":          "\x00\x01\x02",
		"of another task":  `{"version":2,"task":{"id":"b","state":"Failed"}}`,
		"unknown state":    `{"version":2,"task":{"id":"a","state":"Odd"}}`,
		"from the future":  `{"version":3,"task":{"id":"a","state":"Failed"}}`,
		"an unknown field": `{"version":2,"extra":1,"task":{"id":"a","state":"Failed"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			require.NoError(t, s.Save(record("a")))
			require.NoError(t, s.Save(record("good")))
			require.NoError(t, os.WriteFile(filepath.Join(s.dir, "a.json"), []byte(content), 0o600))
			records, err := s.Load()
			require.NoError(t, err)
			require.Len(t, records, 2)
			assert.Equal(t, api.ReasonRecordUnreadable, records[0].Task.Reason)
			assert.Empty(t, records[0].Digest)
			assert.Equal(t, record("good"), records[1])

			again, err := s.Load()
			require.NoError(t, err)
			assert.Equal(t, records[0].Task.Message, again[0].Task.Message, "it is replaced once")
		})
	}
}

func TestWhatAnInterruptedSaveLeavesIsIgnored(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Save(record("a")))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "b.json.tmp"), []byte("{"), 0o600))
	records, err := s.Load()
	require.NoError(t, err)
	assert.Equal(t, []Record{record("a")}, records)
}

func TestARecordIsOnDiskBeforeItIsSaidToBe(t *testing.T) {
	s := open(t)
	var synced []string
	sync = func(file *os.File) error {
		_, err := os.Stat(filepath.Join(s.dir, "a.json"))
		synced = append(synced, filepath.Base(file.Name()))
		if len(synced) == 1 {
			require.ErrorIs(t, err, os.ErrNotExist, "what it says is there before its name is")
		} else {
			require.NoError(t, err)
		}
		return file.Sync()
	}
	t.Cleanup(func() { sync = (*os.File).Sync })
	require.NoError(t, s.Save(record("a")))
	assert.Equal(t, []string{"a.json.tmp", tasksDir}, synced, "first what it says, then its name")
}
