package images

const nginxPage = "It works: served from an image that was assembled from packages.\n"

// nginx is a server whose start script writes its configuration, as the common
// nginx images do.
func nginx() recipe {
	const script = `#!/bin/sh
set -e
sed "s/@PORT@/${PORT:-8080}/" /etc/nginx/nginx.conf.template > /run/nginx.conf
exec nginx -c /run/nginx.conf -g 'daemon off;'
`
	const conf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  include /etc/nginx/mime.types;
  access_log off;
  server {
    listen 127.0.0.1:@PORT@;
    root /srv/www;
  }
}
`
	return recipe{
		layers: []layerRecipe{base(), {name: "nginx", packages: []string{"nginx", "openssl", "ca-certificates"}}, {name: "nginx-site", files: []file{
			{path: "docker-entrypoint.sh", text: script, mode: 0o755},
			{path: "etc/nginx/nginx.conf.template", text: conf},
			{path: "srv/www/"},
			{path: "srv/www/index.html", text: nginxPage},
		}}},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "nginx", Path: "/index.html", Body: nginxPage},
	}
}

// redis is a server without a port: its start script asks it through its socket.
func redis() recipe {
	const script = `#!/bin/sh
set -e
socket=/tmp/redis.sock
redis-server --port 0 --unixsocket $socket --dir /tmp --save '' --appendonly no > /tmp/redis.log &
until [ "$(redis-cli -s $socket ping 2>&1)" = PONG ]; do
  kill -0 $! || { cat /tmp/redis.log; exit 1; }
  sleep 0.01
done
redis-cli -s $socket set answer $((6 * 7)) > /tmp/redis.set
echo "redis answers $(redis-cli -s $socket get answer)"
wait
`
	return recipe{
		layers: []layerRecipe{base(), {name: "redis", packages: []string{"redis-server", "redis-tools"}}, {name: "redis-app", files: []file{
			{path: "docker-entrypoint.sh", text: script, mode: 0o755},
		}}},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "redis", Line: "redis answers 42"},
	}
}
