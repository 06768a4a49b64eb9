//! nginx as a plain reverse proxy: one worker, kept upstream connections, no buffering, no log.

use crate::stage::{PROXY_CORE, Running, Stage, free_port, pinned, start};

/// Starts it before the first engine.
pub fn plain(stage: &Stage) -> Result<Running, String> {
    serve(stage, "", "")
}

/// The same, with TLS 1.3 and HTTP/2 towards the client.
pub fn encrypted(stage: &Stage, certificate: &str, key: &str) -> Result<Running, String> {
    let tls = format!(
        "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; http2_max_concurrent_streams 256;"
    );
    serve(stage, " ssl http2", &tls)
}

fn serve(stage: &Stage, listen: &str, tls: &str) -> Result<Running, String> {
    let port = free_port()?;
    let folder = stage.folder().display();
    let config = format!(
        "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
         events {{ worker_connections 16384; }}
         http {{
           access_log off; keepalive_requests 1000000000; tcp_nodelay on; client_max_body_size 64m;
           client_body_buffer_size 128k; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
           fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
           upstream engine {{ server 127.0.0.1:{}; keepalive 256; keepalive_requests 1000000000; }}
           server {{ listen 127.0.0.1:{port}{listen}; {tls} location / {{
             proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }}
         }}",
        stage.engine_ports()[0]
    );
    let path = stage.write("nginx.conf", config)?;
    start(pinned(PROXY_CORE, "nginx").arg("-c").arg(path), port)
}
