// Package store keeps what must outlive the executor's process: one record per task. It
// knows nothing of processes.
//
// A record is replaced atomically and is on disk when Save returns, so a task that was
// once told to be over stays over.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opensandbox/operator/executor/api"
)

const (
	tasksDir = "tasks"
	suffix   = ".json"
	// maxRecord is far more than what Save writes.
	maxRecord = 64 << 10
	version   = 2
)

// Record is all that is kept of a task: no value that it was given.
type Record struct {
	Version int `json:"version"`
	// Task is what clients are told.
	Task api.Task `json:"task"`
	// Result is how it ended, while clients are told that it runs, because its postStop hook
	// does.
	Result *api.Task `json:"result,omitempty"`
	// Digest of what was asked for; empty if the record was damaged.
	Digest string `json:"digest,omitempty"`
}

// Store is a directory of records.
type Store struct{ dir string }

// Open makes the directory if need be.
func Open(stateDir string) (*Store, error) {
	dir := filepath.Join(stateDir, tasksDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the records: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Save writes a record and returns when it is on disk.
func (s *Store) Save(r Record) error {
	r.Version = version
	if err := api.ValidateTaskID(r.Task.ID); err != nil {
		return fmt.Errorf("save a record: %w", err)
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = WriteFile(filepath.Join(s.dir, r.Task.ID+suffix), data)
	}
	if err != nil {
		return fmt.Errorf("save record %s: %w", r.Task.ID, err)
	}
	return nil
}

// Load reads all records. In the place of one that cannot be read comes one that says so:
// the task may have run, so it must not run again.
func (s *Store) Load() ([]Record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("load the records: %w", err)
	}
	var records []Record
	for _, entry := range entries {
		id, found := strings.CutSuffix(entry.Name(), suffix)
		if !found || api.ValidateTaskID(id) != nil {
			continue // half written
		}
		record, err := s.read(id)
		if err != nil {
			if record, err = s.replace(id, err); err != nil {
				return nil, err
			}
		}
		records = append(records, record)
	}
	return records, nil
}

func (s *Store) read(id string) (Record, error) {
	path := filepath.Join(s.dir, id+suffix)
	info, err := os.Stat(path)
	if err != nil {
		return Record{}, err
	}
	if info.Size() > maxRecord {
		return Record{}, fmt.Errorf("%d bytes are too many", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := api.Decode(data, &r); err != nil {
		return Record{}, err
	}
	switch r.Task.State {
	case api.Starting, api.Running, api.Succeeded, api.Failed:
	default:
		return Record{}, fmt.Errorf("state %q is unknown", r.Task.State)
	}
	if r.Result != nil && !r.Result.State.Ended() {
		return Record{}, fmt.Errorf("result %q is no end", r.Result.State)
	}
	if r.Version != version || r.Task.ID != id {
		return Record{}, fmt.Errorf("version %d, id %q", r.Version, r.Task.ID)
	}
	return r, nil
}

func (s *Store) replace(id string, why error) (Record, error) {
	now := time.Now().UTC()
	r := Record{Version: version, Task: api.Task{
		ID:         id,
		State:      api.Failed,
		Reason:     api.ReasonRecordUnreadable,
		Message:    fmt.Sprintf("the executor restarted and could not read this task's record: %.100s", why),
		FinishedAt: &now,
	}}
	return r, s.Save(r)
}

// Wipe deletes all records.
func (s *Store) Wipe() error {
	entries, err := os.ReadDir(s.dir)
	for _, entry := range entries {
		if err == nil {
			err = os.Remove(filepath.Join(s.dir, entry.Name()))
		}
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("wipe the records: %w", err)
	}
	return nil
}

// Remove deletes one record.
func (s *Store) Remove(id string) error {
	if err := api.ValidateTaskID(id); err != nil {
		return fmt.Errorf("remove a record: %w", err)
	}
	err := os.Remove(filepath.Join(s.dir, id+suffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s: %w", id, err)
	}
	return syncDir(s.dir)
}

// sync returns when what was written is on disk. Tests note when it is called.
var sync = (*os.File).Sync

// WriteFile replaces a file atomically and returns when it is on disk.
func WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = sync(file)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return sync(file)
}
