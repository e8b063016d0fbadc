package pgnotify

import (
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// Channel is where the triggers notify.
func Channel(db *gorm.DB, tables gormsessions.CacheTables) (string, error) {
	p, err := plan(db.Statement.Context, db.Statement.ConnPool, tables)
	if err != nil {
		return "", err
	}
	return p.channel, nil
}
